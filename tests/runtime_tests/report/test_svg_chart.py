"""Charts: ticks, scales, and markup that any parser reads."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowrank_export.runtime_tests.report.svg_chart import (
    HEIGHT,
    WIDTH,
    Point,
    Series,
    axis,
    line_chart,
    linear_ticks,
    log_ticks,
    number,
    tick_words,
)


def chart(*series: Series, **options: object) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart(series, title="T", x_label="x", y_label="y", **options))  # type: ignore[arg-type]


def test_ticks_are_round_numbers() -> None:
    assert linear_ticks(0.38, 0.82) == (0.4, 0.5, 0.6, 0.7, 0.8)
    assert log_ticks(15, 120_000) == (100, 1000, 10_000, 100_000)
    assert log_ticks(15, 700) == (20, 50, 100, 200, 500)
    assert [number(value) for value in (0.8, 52.43, 1304.48, 100_000, 0, 1e-5)] == [
        "0.8",
        "52.4",
        "1,304",
        "100,000",
        "0",
        "1e-05",
    ]


@given(low=st.floats(1e-3, 1e3), share=st.floats(1e-4, 10))
def test_no_two_ticks_are_called_the_same(low: float, share: float) -> None:
    words = tick_words(linear_ticks(low, low * (1 + share)))
    assert len(set(words)) == len(words)
    assert tick_words((0.641, 0.6415, 0.642)) == ["0.6410", "0.6415", "0.6420"] and tick_words((1, 2)) == ["1", "2"]


@pytest.mark.parametrize("points", [(Point(1, 0.64, 0.3), Point(2, 0.65, 0.3)), (Point(1, 10, 9), Point(2, 900, 950))])
@pytest.mark.parametrize("log_y", [None, True, False])
def test_error_bars_stay_within_the_frame(points: tuple[Point, ...], log_y: bool | None) -> None:
    drawn = chart(Series("a", points), log_y=log_y)
    bars = [path.get("d", "") for path in drawn.iter("path") if path.get("class") == "error"]
    assert len(bars) == 2
    (frame,) = [path.get("d", "") for path in drawn.iter("path") if path.get("class") == "axis"]
    top, bottom = (float(part) for part in re.findall(r"[ V]([\d.]+)", frame)[:2])
    for bar in bars:
        high, low = (float(part) for part in re.findall(r"[ V]([\d.]+)", bar))
        assert top - 0.5 <= high < low <= bottom + 0.5


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=9))
def test_every_value_lies_on_its_axis(values: list[float]) -> None:
    for log in (None, True, False):
        made = axis(values, log=log)
        assert all(0 < made.place(value) < 1 for value in values)
        assert all(-1e-9 <= made.place(tick) <= 1 + 1e-9 for tick in made.ticks)
        assert 1 <= len(made.ticks) <= 12


def test_the_range_asks_for_a_logarithmic_scale() -> None:
    assert axis([20, 1300]).log and not axis([20, 60]).log
    assert not axis([0, 1300]).log


def test_markup() -> None:
    many = [Series(f"<m> & {i}", (Point(0.4, 10.0 * i + 1, 2), Point(0.8, 2), Point(0.6, math.nan))) for i in range(9)]
    drawn = chart(*many, reference=("dense", 1.5))
    assert drawn.get("role") == "img" and drawn.findtext("title") == "T"
    titles = [title.text for title in drawn.iter("title")]
    assert len(titles) == 1 + 9 * 2 and "<m> & 3: 31 at 0.4" in titles
    texts = [text.text or "" for text in drawn.iter("text")]
    assert "y (log)" in texts and "dense" in texts and "<m> & 8" in texts
    for text in drawn.iter("text"):
        assert 0 <= float(text.get("x", "0")) <= WIDTH and 0 <= float(text.get("y", "0")) <= HEIGHT


@pytest.mark.parametrize("points", [(), (Point(0.5, 3.0),), (Point(0.5, math.inf),), (Point(0.5, 0), Point(0.6, 0))])
def test_few_or_equal_points(points: tuple[Point, ...]) -> None:
    markup = line_chart([Series("a", points)], title="T", x_label="x", y_label="y", reference=("dense", math.nan))
    assert "nan" not in markup and "inf" not in markup
    ElementTree.fromstring(markup)
