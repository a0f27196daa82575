"""A comparison as a table for people, and the words that the page and the table share."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from ..child import Cost
from .compare_results import CompareRow, Comparison, Measurement

if TYPE_CHECKING:
    from rich.console import RenderableType

MISSING = "-"
SAMPLE_CHARACTERS = 160
HEADINGS = (
    "retention",
    "compres-\nsion",
    "MB",
    "bits/\nw",
    "PPL\n± s.e.",
    "KLD",
    "same-\ntop %",
    "CPU\nseconds",
    "seconds",
    "peak\nGB",
)
INCLUDED = (
    "CPU seconds, seconds and peak memory are those of `compress` in a process of its own, from its start on, reading "
    "the model and writing the checkpoint included. Statistics of the dense model are gathered once for all methods "
    "that read them and counted in their own rows; measuring is not counted."
)


def render(comparison: Comparison) -> RenderableType:
    """Table, notes and samples, ready for `rich.console.Console.print`."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_table(comparison), Text(evaluation_words(comparison), style="dim")]
    parts.append(Text(INCLUDED, style="dim"))
    parts.append(Text(f'\nGreedy continuation of "{comparison.dense.sample.prompt}":'))
    parts += [
        Text.assemble("  ", (text[:SAMPLE_CHARACTERS] or "(empty)", "italic"), (f"\n    {label}", "dim"))
        for label, text in samples(comparison)
    ]
    return Group(*parts)


def _table(comparison: Comparison) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("method", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("dense", *dense_cells(comparison.dense))
    for _, rows in groupby(comparison.rows, key=lambda row: row.retention):
        table.add_section()
        for row in rows:
            best = (row.method, row.retention) in comparison.best
            table.add_row(row.method, *cells(row), style="bold" if best else None)
    if comparison.statistics:
        table.add_section()
    for gathering in comparison.statistics:
        readers = f"\n  read by {', '.join(gathering.methods)}"
        empty = [""] * (len(HEADINGS) - 3)
        table.add_row(f"statistics: {gathering.kind}{readers}", *empty, *cost_cells(gathering.cost), style="dim")
    return table


def cells(row: CompareRow) -> tuple[str, ...]:
    """A row under HEADINGS."""
    reached = f"{row.kept:.3f}", f"{100 * (1 - row.kept):.1f}%"
    return (*reached, *_measured_cells(row.measured), *cost_cells(row.cost))


def dense_cells(dense: Measurement) -> tuple[str, ...]:
    """The dense model under HEADINGS."""
    return ("1", "0%", *_measured_cells(dense), MISSING, MISSING, MISSING)


def cost_cells(cost: Cost) -> tuple[str, str, str]:
    """CPU seconds, seconds, gigabytes."""
    return f"{cost.cpu_seconds:.0f}", f"{cost.wall_seconds:.0f}", f"{cost.peak_bytes / 1e9:.2f}"


def _measured_cells(found: Measurement) -> tuple[str, ...]:
    kld = same = MISSING
    if found.quality is not None:
        mean = found.quality.mean_kld
        kld = f"{mean:.1e}" if mean < 0.01 else f"{mean:.3f}"
        same = f"{100 * found.quality.same_top:.1f}"
    size = f"{found.bytes / 1e6:.1f}", f"{found.bits_per_weight:.2f}"
    return (*size, found.perplexity.words, kld, same)


def evaluation_words(comparison: Comparison) -> str:
    """What was measured on."""
    windows = comparison.evaluation["evaluation_windows"]
    return (
        f"PPL, KLD against the dense model (nats) and same-top on {windows['count']} windows of {windows['length']} "
        f"tokens of {comparison.evaluation['evaluation_text']}; bold: the lowest PPL at a retention"
    )


def samples(comparison: Comparison) -> list[tuple[str, str]]:
    """(who wrote it, text) on one line, without control characters; those who agree together, dense first."""
    labels: dict[str, list[str]] = {}
    labels.setdefault(_flat(comparison.dense), []).append("dense")
    for row in comparison.rows:
        labels.setdefault(_flat(row.measured), []).append(f"{row.method} {row.retention:g}")
    return [(", ".join(names), text) for text, names in labels.items()]


def _flat(found: Measurement) -> str:
    words = " ".join(found.sample.text.split())
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words)
