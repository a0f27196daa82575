"""A heat map as inline SVG: one cell per row and column, from pale to strong, its value on hovering."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from .svg_chart import WIDTH, number

CELL, TOP, LEFT, RIGHT, SCALE = 26, 8, 74, 8, 46  # height of a row, margins, height of the scale below
STEPS = 5  # of the scale


def heat_map(
    values: Mapping[tuple[str, int], float], *, rows: Sequence[str], columns: Sequence[int], title: str, x_label: str
) -> str:
    """Draw values by row and column; a missing one leaves its cell empty. Colors come from `svg_chart.STYLE`.

    Args:
        values: (row, column) -> finite value.
        rows, columns: in the order drawn.
        title: said by screen readers and shown on hovering.
        x_label: of the columns.

    Returns:
        An `<svg>` element for use inside HTML.
    """
    low, high = min(values.values()), max(values.values())
    wide = (WIDTH - LEFT - RIGHT) / len(columns)
    bottom = TOP + CELL * len(rows)
    parts = []
    for i, row in enumerate(rows):
        y = TOP + CELL * i
        parts.append(f'<text x="{LEFT - 6}" y="{y + CELL / 2 + 4:.0f}" text-anchor="end">{escape(row)}</text>')
        for j, column in enumerate(columns):
            if (row, column) in values:
                value = values[row, column]
                place = f'x="{LEFT + j * wide:.1f}" y="{y}" width="{max(wide - 1, 0.5):.1f}" height="{CELL - 1}"'
                said = escape(f"{row}, {x_label} {column}: {number(value)}")
                parts.append(f"<rect {place} {_fill(value, low, high)}><title>{said}</title></rect>")
    every = math.ceil(len(columns) / 10)
    for j, column in list(enumerate(columns))[::every]:
        x = LEFT + (j + 0.5) * wide
        parts.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{column}</text>')
    parts.append(_scale(low, high, bottom + 22, x_label))
    label = escape(title, quote=True)
    body = "\n".join(parts)
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {bottom + SCALE}" role="img" aria-label="{label}">\n'
        f"<title>{escape(title)}</title>\n{body}\n</svg>"
    )


def _scale(low: float, high: float, y: float, x_label: str) -> str:
    """The label of the columns, and the colors from the smallest to the largest value."""
    parts = [f'<text x="{LEFT}" y="{y + 14}">{escape(x_label)}</text>']
    begin = WIDTH - RIGHT - 190
    parts.append(f'<text x="{begin}" y="{y + 14}" text-anchor="end">{number(low)}</text>')
    for step in range(STEPS):
        value = low + (high - low) * step / (STEPS - 1)
        place = f'x="{begin + 6 + 26 * step}" y="{y + 3}" width="25" height="14"'
        parts.append(f"<rect {place} {_fill(value, low, high)}/>")
    parts.append(f'<text x="{begin + 12 + 26 * STEPS}" y="{y + 14}">{number(high)}</text>')
    return "".join(parts)


def _fill(value: float, low: float, high: float) -> str:
    strength = 0.12 + 0.88 * ((value - low) / (high - low) if high > low else 0.5)
    return f'style="fill:var(--s0);fill-opacity:{strength:.2f}"'
