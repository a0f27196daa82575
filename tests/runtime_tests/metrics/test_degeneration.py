"""Repetition measured against counting by hand and a slow search."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_export.runtime_tests.metrics.degeneration import (
    degeneration,
    distinct,
    longest_repeat,
    mean_and_error,
    repetition_increase,
)


def test_by_hand() -> None:
    found = degeneration([[1, 2, 3, 4, 5, 6, 7, 8], [9, 9, 9, 9, 9, 9]])
    assert found.distinct_1 == pytest.approx((1 + 1 / 6) / 2)
    assert found.distinct_2 == pytest.approx((1 + 1 / 5) / 2)
    assert found.repetition == pytest.approx((0 + 2 / 3) / 2)
    assert found.longest_repeat == 5 and found.tokens == 14
    assert found.repetitions == pytest.approx((0, 2 / 3))
    assert found.repetition_error == pytest.approx(1 / 3)  # half the distance of two values


def test_increase_is_taken_text_by_text() -> None:
    """Texts that are hard for both models do not add to the error."""
    calm, looping = list(range(12)), [3] * 12
    theirs = degeneration([calm, looping, calm, [1]])
    ours = degeneration([looping, looping, looping, looping])
    mean, error = repetition_increase(ours, theirs)
    assert mean == pytest.approx((8 / 9 + 0 + 8 / 9) / 3)
    assert error == pytest.approx(np.std([8 / 9, 0, 8 / 9], ddof=1) / math.sqrt(3))
    assert repetition_increase(theirs, theirs) == (0, 0)
    assert all(map(math.isnan, repetition_increase(degeneration([[1]]), degeneration([calm]))))


@given(values=st.lists(st.floats(-1, 1), min_size=2, max_size=9))
def test_mean_and_error(values: list[float]) -> None:
    mean, error = mean_and_error([*values, math.nan])
    assert mean == pytest.approx(np.mean(values), abs=1e-12)
    assert error == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-12)
    assert math.isnan(mean_and_error(values[:1])[1]) and math.isnan(mean_and_error([])[0])


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
