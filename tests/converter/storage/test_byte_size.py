"""Sizes as people write them."""

from __future__ import annotations

import pytest

from lowrank_export.converter.core.errors import UsageError
from lowrank_export.converter.storage.byte_size import memory_limit, parse_bytes


@pytest.mark.parametrize(
    ("text", "value"), [("4096", 4096), ("100MB", 1e8), ("1.5 gib", 1.5 * 2**30), ("MB", None), ("1 mile", None)]
)
def test_bytes(text: str, value: float | None) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "0", "0.5", "much", "-1GB", "9" * 30 + "GB"])
def test_a_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--max-memory"):
        memory_limit(text)


def test_a_limit() -> None:
    assert memory_limit("8GB") == 8_000_000_000 and memory_limit(None) is None
