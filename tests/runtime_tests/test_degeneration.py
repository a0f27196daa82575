"""Repetition measured against counting by hand and a slow search."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_export.runtime_tests.degeneration import degeneration, distinct, longest_repeat


def test_by_hand() -> None:
    found = degeneration([[1, 2, 3, 4, 5, 6, 7, 8], [9, 9, 9, 9, 9, 9]])
    assert found.distinct_1 == pytest.approx((1 + 1 / 6) / 2)
    assert found.distinct_2 == pytest.approx((1 + 1 / 5) / 2)
    assert found.repetition == pytest.approx((0 + 2 / 3) / 2)
    assert found.longest_repeat == 5 and found.tokens == 14


def test_texts_too_short_to_tell() -> None:
    assert math.isnan(distinct([1], 2))
    found = degeneration([[], [1, 2]])
    assert math.isnan(found.repetition) and found.distinct_2 == 1 and found.tokens == 2
    assert math.isnan(degeneration([]).distinct_1)


@given(text=st.lists(st.integers(0, 3), max_size=24))
def test_longest_repeat_is_the_longest(text: list[int]) -> None:
    spans = [(start, stop) for start in range(len(text)) for stop in range(start + 1, len(text) + 1)]
    again = [b - a for a, b in spans if any(text[a:b] == text[c : c + b - a] for c in range(a + 1, len(text)))]
    assert longest_repeat(text) == max(again, default=0)
