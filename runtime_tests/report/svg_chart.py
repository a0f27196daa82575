"""A line chart as inline SVG: plain functions, points in, markup out. Colors come from the page's `STYLE`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 420, 330  # small units, so that a chart on a phone's width has readable letters
LEFT, RIGHT, BOTTOM = 74, 12, 44
LEGEND_ROW, LETTER = 18, 7.6  # height of a legend's row, mean width of a letter
LOG_FROM = 8.0  # largest / smallest value from which on an axis is logarithmic
TICKS = 5

STYLE = """
.chart { --s0:#0b62a8; --s1:#b4470b; --s2:#00735a; --s3:#8a3d86; --s4:#7a6200; --s5:#444; --s6:#a3134d; --s7:#3b4fc4;
  width:100%; height:auto; display:block; font:12px system-ui, sans-serif; }
@media (prefers-color-scheme: dark) {
  .chart { --s0:#6db6f2; --s1:#f2995c; --s2:#4fcfae; --s3:#dc9ad8; --s4:#d9c25a; --s5:#ccc; --s6:#f57fa8;
    --s7:#9aa8ff; }
}
.chart text { fill:currentColor; }
.chart .axis { stroke:currentColor; stroke-opacity:.6; fill:none; }
.chart .grid { stroke:currentColor; stroke-opacity:.14; fill:none; }
.chart .reference { stroke:currentColor; stroke-opacity:.65; stroke-dasharray:1 4; stroke-linecap:round;
  stroke-width:2; }
.chart .line { fill:none; stroke-width:2; }
.chart .error { stroke-width:1.2; }
.chart .mark { stroke-width:1.2; stroke-linejoin:round; }
"""
"""Put once into the page that holds charts; light and dark."""

COLORS = 8
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 3", "12 4", "6 2 2 2")
MARKS = (
    "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0 -4 0Z",  # circle
    "M-4 -4H4V4H-4Z",  # square
    "M0 -5L5 4H-5Z",  # triangle
    "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",  # diamond
    "M0 5L5 -4H-5Z",  # triangle, downwards
    "M-1.5 -5H1.5V-1.5H5V1.5H1.5V5H-1.5V1.5H-5V-1.5H-1.5Z",  # plus
    "M-5 -2H5V2H-5Z",  # bar
    "M0 -5.5L2 -1.5H5.5L2.5 1L4 5L0 2.5L-4 5L-2.5 1L-5.5 -1.5H-2Z",  # star
)


@dataclass(frozen=True)
class Point:
    """A value with, optionally, its standard error."""

    x: float
    y: float
    error: float = 0.0


@dataclass(frozen=True)
class Series:
    """One line of a chart. Points whose y is no finite number are left out."""

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Axis:
    """Data -> place along an axis.

    Attributes:
        low, high: ends, in data units.
        log: whether equal factors, not equal differences, are equally long.
        ticks: where it is labeled.
    """

    low: float
    high: float
    log: bool
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def axis(values: Sequence[float], *, log: bool | None = None) -> Axis:
    """An axis that holds all values, with a margin.

    Args:
        values: finite; an axis of none goes from 0 to 1.
        log: None decides by the range of positive values.
    """
    if not values:
        return Axis(0.0, 1.0, False, (0.0, 0.5, 1.0))
    low, high = min(values), max(values)
    if log is None:
        log = low > 0 and high / low >= LOG_FROM
    if log and low > 0:
        factor = max((high / low) ** 0.06, 1.05)
        low, high = low / factor, high * factor
        return Axis(low, high, True, log_ticks(low, high))
    apart = high - low > 1e-9 * max(abs(low), abs(high))  # else they are equal but for rounding
    margin = 0.06 * (high - low) if apart else 0.05 * abs(high) or 0.5
    low, high = low - margin, high + margin
    return Axis(low, high, False, linear_ticks(low, high))


def linear_ticks(low: float, high: float) -> tuple[float, ...]:
    """About `TICKS` round numbers within [low, high]."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return tuple(float(f"{i * step:.12g}") for i in range(math.ceil(low / step), math.floor(high / step) + 1))


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Powers of ten within [low, high], with 2 and 5 times them where powers are few; round numbers where none fit."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        ticks = tuple(f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high)
        if len(ticks) >= TICKS - 1:
            break
    if len(ticks) < 3:
        ticks = linear_ticks(low, high)
    every = -(-len(ticks) // (2 * TICKS))
    return tuple(tick for tick in ticks[::every] if tick > 0)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_y: bool | None = None,
    reference: tuple[str, float] | None = None,
) -> str:
    """Draw lines with markers, a legend above them.

    Color, marker and dashes of a series go by its place, so charts with the same series agree.

    Args:
        series: what to draw.
        title: said by screen readers and shown on hovering.
        x_label, y_label: of the axes.
        log_y: logarithmic y; None decides by the range.
        reference: label and y of a horizontal line.

    Returns:
        An `<svg>` element for use inside HTML.
    """
    drawn = [Series(s.label, tuple(p for p in s.points if math.isfinite(p.x) and math.isfinite(p.y))) for s in series]
    points = [point for s in drawn for point in s.points]
    line = reference[1] if reference is not None and math.isfinite(reference[1]) else None
    x = axis([point.x for point in points], log=False)
    y = axis([end for point in points for end in _ends(point)] + ([] if line is None else [line]), log=log_y)
    legend, top = _legend([s.label for s in drawn], reference[0] if reference and line is not None else None)
    frame = _Frame(x, y, top)
    parts = [legend, _axes(frame, x_label, y_label)]
    if line is not None:
        row = f"{frame.down(line):.1f}"
        parts.append(f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{row}" y2="{row}"/>')
    parts += [_series(frame, index, s) for index, s in enumerate(drawn)]
    label = escape(title, quote=True)
    body = "\n".join(parts)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">\n'
        f"<title>{escape(title)}</title>\n{body}\n</svg>"
    )


@dataclass(frozen=True)
class _Frame:
    x: Axis
    y: Axis
    top: float

    def across(self, value: float) -> float:
        return LEFT + self.x.place(value) * (WIDTH - LEFT - RIGHT)

    def down(self, value: float) -> float:
        return HEIGHT - BOTTOM - self.y.place(value) * (HEIGHT - BOTTOM - self.top)


def _legend(labels: Sequence[str], reference: str | None) -> tuple[str, float]:
    """Legend, wrapped; and where the plot may begin."""
    entries = [
        (_stroke("M0 0H24", i) + f'<g transform="translate(12 0)">{_mark(i)}</g>', s) for i, s in enumerate(labels)
    ]
    if reference is not None:
        entries.append(('<line class="reference" x1="0" x2="24" y1="0" y2="0"/>', reference))
    parts, x, y = [], 8.0, 12.0
    for swatch, label in entries:
        width = 40 + LETTER * len(label)
        if x > 8 and x + width > WIDTH:
            x, y = 8.0, y + LEGEND_ROW
        text = f'<text x="28" y="4">{escape(label)}</text>'
        parts.append(f'<g transform="translate({x:.0f} {y:.0f})">{swatch}{text}</g>')
        x += width
    return "\n".join(parts), y + LEGEND_ROW


def _axes(frame: _Frame, x_label: str, y_label: str) -> str:
    parts = []
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    for tick, words in zip(frame.y.ticks, tick_words(frame.y.ticks), strict=True):
        row = frame.down(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{row:.1f}" y2="{row:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{row + 4:.1f}" text-anchor="end">{words}</text>')
    for tick, words in zip(frame.x.ticks, tick_words(frame.x.ticks), strict=True):
        column = frame.across(tick)
        parts.append(f'<line class="axis" x1="{column:.1f}" x2="{column:.1f}" y1="{bottom}" y2="{bottom + 5}"/>')
        parts.append(f'<text x="{column:.1f}" y="{bottom + 18}" text-anchor="middle">{words}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {frame.top:.0f}V{bottom}H{right}"/>')
    middle = (frame.top + bottom) / 2
    scale = " (log)" if frame.y.log else ""
    parts.append(f'<text x="{(LEFT + right) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    turned = f'transform="translate(13 {middle:.0f}) rotate(-90)"'
    parts.append(f'<text {turned} text-anchor="middle">{escape(y_label + scale)}</text>')
    return "\n".join(parts)


def _series(frame: _Frame, index: int, series: Series) -> str:
    places = [(frame.across(p.x), frame.down(p.y), p) for p in sorted(series.points, key=lambda p: p.x)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y, _ in places)
    parts = [_stroke(f"M{path}", index)] if len(places) > 1 else []
    for x, y, point in places:
        said = f"{series.label}: {number(point.y)} at {number(point.x)}"
        parts.append(f'{_error_bar(frame, index, point)}<g transform="translate({x:.1f} {y:.1f})">')
        parts.append(f"<title>{escape(said)}</title>{_mark(index)}</g>")
    return f"<g>{''.join(parts)}</g>"


def _ends(point: Point) -> tuple[float, float]:
    """Of the error bar; a positive value's stays positive, so that its axis may be logarithmic."""
    if not (math.isfinite(point.error) and point.error > 0):
        return point.y, point.y
    low = point.y - point.error
    return point.y if point.y > 0 >= low else low, point.y + point.error


def _error_bar(frame: _Frame, index: int, point: Point) -> str:
    """One standard error to both sides, within the frame."""
    if not (math.isfinite(point.error) and point.error > 0):
        return ""
    x, high = frame.across(point.x), frame.down(point.y + point.error)
    low = frame.down(max(point.y - point.error, frame.y.low))
    stroke = f"stroke:var(--s{index % COLORS})"
    return f'<path class="error" style="{stroke}" d="M{x:.1f} {high:.1f}V{low:.1f}"/>'


def _stroke(path: str, index: int) -> str:
    dashes = DASHES[index % len(DASHES)]
    dashed = f";stroke-dasharray:{dashes}" if dashes else ""
    return f'<path class="line" style="stroke:var(--s{index % COLORS}){dashed}" d="{path}"/>'


def _mark(index: int) -> str:
    color = f"var(--s{index % COLORS})"
    return f'<path class="mark" style="fill:{color};stroke:{color}" d="{MARKS[index % len(MARKS)]}"/>'


def tick_words(ticks: Sequence[float]) -> list[str]:
    """Ticks as `number` writes them, or with as many decimals as tell them apart."""
    words = [number(tick) for tick in ticks]
    if len(set(words)) == len(words):
        return words
    step = round(min(b - a for a, b in pairwise(ticks)), 12)
    decimals = max(0, -math.floor(math.log10(step)))
    return [f"{tick:,.{decimals}f}" for tick in ticks]


def number(value: float) -> str:
    """A number in few letters: three digits, thousands in full, no trailing zeros."""
    if value == 0 or 0.001 <= abs(value) < 1e6:
        digits = 3 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{digits}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.2g}"
