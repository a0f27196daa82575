"""The rank multiple that is chosen for a storage type."""

from __future__ import annotations

import pytest

from lowrank_export.converter.allocation.plan import LinearShape
from lowrank_export.converter.allocation.rank_multiple import choose_rank_multiple


def block(hidden: int, keys: int, intermediate: int) -> list[LinearShape]:
    sizes = [(hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden)]
    sizes += [(intermediate, hidden), (intermediate, hidden), (hidden, intermediate)]
    return [LinearShape(str(i), 0, *size) for i, size in enumerate(sizes)]


SMOLLM2 = block(576, 192, 1536)
LLAMA_1B = block(2048, 512, 8192)
LLAMA_8B = block(4096, 1024, 14336)


@pytest.mark.parametrize(
    ("shapes", "retention", "row", "expected"),
    [
        (LLAMA_8B, 0.8, 256, 256),
        (LLAMA_8B, 0.8, 32, 32),
        (LLAMA_8B, 0.8, 1, 32),
        (LLAMA_8B, 0.3, 256, 32),  # k and v would fall below one multiple
        (LLAMA_1B, 0.8, 256, 32),  # q and o hold too few multiples
        (SMOLLM2, 0.8, 256, 32),
        ([], 0.8, 256, 32),
    ],
)
def test_large_multiples_only_where_they_cost_little(
    shapes: list[LinearShape], retention: float, row: int, expected: int
) -> None:
    assert choose_rank_multiple(shapes, retention, row) == expected
