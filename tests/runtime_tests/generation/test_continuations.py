"""Pieces of the evaluation text, and their continuations one by one and all at once."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from lowrank_export.converter.core.errors import InputError
from lowrank_export.runtime_tests.backends.protocol import Together
from lowrank_export.runtime_tests.backends.torch_reference import TorchBackend
from lowrank_export.runtime_tests.generation.continuations import continue_pieces, pieces
from lowrank_export.runtime_tests.generation.generation import generate
from lowrank_export.runtime_tests.metrics.windows import Windows

TOKENS = np.arange(8 * 12, dtype=np.int32).reshape(8, 12)


@pytest.mark.parametrize(
    ("count", "length", "shape"),
    [(8, 5, (8, 5)), (16, 5, (16, 5)), (16, 9, (16, 6)), (5, 4, (5, 4)), (100, 4, (96, 1)), (11, 3, (11, 3))],
)
def test_pieces_are_text_and_do_not_overlap(count: int, length: int, shape: tuple[int, int]) -> None:
    found = pieces(Windows.whole(TOKENS), count, length)
    assert found.shape == shape
    np.testing.assert_array_equal(np.diff(found, axis=1), 1)
    assert all(row[0] // 12 == row[-1] // 12 for row in found)  # within one window
    assert len(np.unique(found)) == found.size
    if count >= len(TOKENS):
        assert {row[0] // 12 for row in found} == set(range(8))  # of every window


def test_together_is_what_one_by_one_gives(tiny: ModuleType) -> None:
    backend = TorchBackend(tiny.model("llama"))
    prompts = np.random.default_rng(0).integers(1, 200, (5, 6)).astype(np.int32)
    alone = [generate(backend, prompt, max_tokens=20, seed=7 + i) for i, prompt in enumerate(prompts)]
    end = (alone[2][3], alone[4][11])
    expected = [generate(backend, prompt, max_tokens=20, end=end, seed=7 + i) for i, prompt in enumerate(prompts)]
    assert isinstance(backend, Together)
    told: list[int] = []
    assert (
        continue_pieces(backend, prompts, seeds=range(7, 12), max_tokens=20, end=end, advance=told.append) == expected
    )
    assert sum(told) == 20 * len(prompts)  # whether or not all texts end early
    told.clear()
    continue_pieces(backend, prompts, seeds=range(7, 12), max_tokens=20, end=range(10_000), advance=told.append)
    assert sum(told) == 20 * len(prompts)
    assert len(expected[2]) <= 3 and len(expected[4]) <= 11 and max(map(len, expected)) > 11


class Single:
    """A runtime that runs one sequence at a time, around another."""

    name = "single"

    def __init__(self, inner: TorchBackend) -> None:
        self.reset, self.feed, self.window_logits, self.close = (
            inner.reset,
            inner.feed,
            inner.window_logits,
            inner.close,
        )


def test_a_runtime_of_single_sequences_writes_the_same(tiny: ModuleType) -> None:
    backend = TorchBackend(tiny.model("qwen2"))
    prompts = np.random.default_rng(1).integers(1, 200, (3, 4)).astype(np.int32)
    options = {"seeds": (0, None, 2), "max_tokens": 8, "end": ()}
    assert continue_pieces(Single(backend), prompts, **options) == continue_pieces(backend, prompts, **options)


def test_nan_names_the_backend() -> None:
    class Damaged(Single):
        name = "damaged"

        def __init__(self) -> None: ...

        def reset(self) -> None: ...

        def at_once(self, length: int) -> int:
            return 2

        def feed_all(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
            return np.full((len(tokens), 9), np.nan, np.float32)

    with pytest.raises(InputError, match="damaged: NaN logits after 0"):
        continue_pieces(Damaged(), np.ones((2, 3), np.int32), seeds=(0, 1), max_tokens=4, end=())  # type: ignore[arg-type]
