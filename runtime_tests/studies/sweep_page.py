"""A sweep as a table for people and as one self-contained page."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..report.html import drawn, fill
from ..report.svg_chart import Point, Series, line_chart
from .sweep_results import AWARE, PLAIN, SIZED, Sweep, SweepRow, pareto

if TYPE_CHECKING:
    from rich.console import RenderableType

HEADINGS = ("retention", "MB", "bits/w", "PPL ± s.e.", "KLD", "same-top", "prefill tok/s", "decode tok/s", "CPU s")
FRONT = "On the front: no other export has both fewer bytes and a smaller KL divergence from the dense model."


def cells(row: SweepRow) -> tuple[str, ...]:
    """A row under HEADINGS."""
    return (
        f"{row.kept:.3f}",
        f"{row.bytes / 1e6:.1f}",
        f"{row.bits_per_weight:.2f}",
        row.perplexity.words,
        f"{row.kld:.4f}",
        f"{100 * row.quality.same_top:.1f}%",
        f"{row.speed.prefill.median:.0f}" if row.speed else "-",
        f"{row.speed.decode.median:.1f}" if row.speed else "-",
        f"{row.compress_seconds:.0f}" if row.compress_seconds else "-",
    )


def render(found: Sweep) -> RenderableType:
    """Table, ready for `rich.console.Console.print`; the front is bold."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    front = pareto(found.rows)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("export", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for row in sorted(found.rows, key=lambda row: row.bytes):
        table.add_row(row.label, *cells(row), style="bold" if row in front else None)
    return Group(table, Text(f"bold: {FRONT[0].lower()}{FRONT[1:]}", style="dim"))


def sweep_page(found: Sweep) -> str:
    """The whole HTML document."""
    front = pareto(found.rows)
    charts = {
        "KL divergence from the dense model against bytes": _fronts(found, lambda row: row.kld, "KLD"),
        "Perplexity against bytes": _fronts(
            found, lambda row: row.perplexity.value, "PPL", ("dense torch model", found.dense.value)
        ),
    }
    if any(row.speed for row in found.rows):
        charts["Decode speed against bytes"] = _fronts(found, _decoded, "tokens per second")
    return fill(
        "sweep.html",
        title=f"{found.source['spec']}: size against quality",
        sweep=found,
        captions=list(charts),
        charts=drawn(charts.values()),
        headings=HEADINGS,
        rows=[(row.label, cells(row), row in front) for row in sorted(found.rows, key=lambda row: row.bytes)],
        front=FRONT,
        command=_command(found),
    )


def _methods(found: Sweep) -> list[str]:
    return list(dict.fromkeys(row.method for row in found.rows))


def _decoded(row: SweepRow) -> float:
    return row.speed.decode.median if row.speed else math.nan


def _label(method: str) -> str:
    named = {PLAIN: "plain quantization", AWARE: "plain types, aware rounding", SIZED: "rank and type by size"}
    return named.get(method, method)


def _fronts(
    found: Sweep, value: Callable[[SweepRow], float], y_label: str, reference: tuple[str, float] | None = None
) -> str:
    """Of every method, the exports that none of its own beats: one line each."""
    series = []
    for method in _methods(found):
        own = pareto([row for row in found.rows if row.method == method])
        series.append(Series(_label(method), tuple(Point(row.bytes / 1e6, value(row)) for row in own)))
    return line_chart(series, title=f"{y_label} against bytes", x_label="MB", y_label=y_label, reference=reference)


def _command(found: Sweep) -> str:
    """The options that make these rows again, but for the recipe's other keys, which the page lists."""
    own = [row for row in found.rows if row.method not in (PLAIN, AWARE, SIZED)]
    sizes = ",".join(str(row.size) for row in found.rows if row.size is not None)
    by_size = f"--sizes {sizes} " if sizes else ""
    methods = ",".join(dict.fromkeys(row.method for row in own))
    retentions = ",".join(dict.fromkeys(f"{row.retention:g}" for row in own))
    typed = [row for row in found.rows if row.method != SIZED]
    types = " ".join(dict.fromkeys(f"--{row.format}-type {row.quantization}" for row in typed))
    formats = " ".join(dict.fromkeys(f"--format {row.format}" for row in found.rows))
    return (
        f"lowrank-export sweep --model {found.source['spec']} --methods {methods} --retention {retentions} "
        f"{by_size}{formats} {types} --evaluate {found.evaluation['text']} --out DIR"
    )
