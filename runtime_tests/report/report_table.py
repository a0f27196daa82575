"""The report as a table for people: dense and factored side by side in every runtime, 100 columns wide."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

from ..metrics.parity import Parity
from ..timing.speed import Speed
from .report import Report, Row

if TYPE_CHECKING:
    from rich.console import RenderableType

MISSING = "-"
SAMPLE_CHARACTERS = 160
HEADINGS = (
    "MB",
    "bits/\nw",
    "PPL\n± s.e.",
    "parity\nKLD",
    "same-\ntop %",
    "quality\nKLD",
    "same-\ntop %",
    "prefill\ntok/s",
    "decode\ntok/s",
)


def render(report: Report) -> RenderableType:
    """Table, samples and gates, ready for `rich.console.Console.print`."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [_table(report)]
    notes = (
        f"{report.windows['count']} windows of {report.windows['length']} tokens; KLD and same-top: parity against the "
        "torch model exported, quality against dense; tok/s: median"
    )
    parts.append(Text(notes, style="dim"))
    parts.extend(Text(f"{row.label}: {line}", style="dim") for row in report.rows for line in row.fallbacks)
    parts.extend(_samples(report.rows))
    parts.extend(Text(line, style=style) for line, style in _verdict(report))
    return Group(*parts)


def _table(report: Report) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False)
    table.add_column("runtime\ntype", no_wrap=True)
    table.add_column("model", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for (backend, quantization), rows in groupby(report.rows, key=lambda row: (row.backend, row.quantization)):
        label = f"{backend}\n{quantization}"
        for row in rows:
            table.add_row(label, *_cells(row), style=None if all(gate.passed for gate in row.gates) else "red")
            label = ""
    return table


def _cells(row: Row) -> Iterable[str]:
    yield row.model
    yield f"{row.bytes / 1e6:.1f}"
    yield f"{row.bits_per_weight:.2f}"
    yield row.perplexity.words
    yield from _parity_cells(row.parity)
    yield from _parity_cells(row.quality)
    yield from _speed_cells(row.speed, row.dense_speed)


def _parity_cells(parity: Parity | None) -> tuple[str, str]:
    if parity is None:
        return MISSING, MISSING
    kld = f"{parity.mean_kld:.1e}" if parity.mean_kld < 0.01 else f"{parity.mean_kld:.3f}"
    return kld, f"{100 * parity.same_top:.1f}"


def _speed_cells(speed: Speed | None, dense: Speed | None) -> tuple[str, str]:
    """Tokens per second, and below them how many times the dense model's of the same run."""
    if speed is None:
        return MISSING, MISSING
    prefill, decode = f"{speed.prefill.median:.0f}", f"{speed.decode.median:.1f}"
    if dense is None:
        return prefill, decode
    return (
        f"{prefill}\n{speed.prefill.median / dense.prefill.median:.2f}x",
        f"{decode}\n{speed.decode.median / dense.decode.median:.2f}x",
    )


def _samples(rows: Iterable[Row]) -> Iterable[RenderableType]:
    """The prompt once; the continuations, those that agree together."""
    from rich.text import Text

    labels: dict[str, list[str]] = {}
    prompt = ""
    for row in rows:
        if row.writing is not None:
            prompt = row.writing.greedy[0].prompt
            text = " ".join(row.writing.greedy[0].text.split())
            labels.setdefault(text[:SAMPLE_CHARACTERS], []).append(row.label)
    if labels:
        yield Text(f'\nGreedy continuation of "{prompt}":')
    for text, names in labels.items():
        yield Text.assemble("  ", (text or "(empty)", "italic"), (f"\n    {', '.join(names)}", "dim"))


def _verdict(report: Report) -> Iterable[tuple[str, str]]:
    gates = sum(len(row.gates) for row in report.rows)
    failures = report.failures
    if not failures:
        yield f"\n{gates} gates passed", "green"
        return
    yield f"\n{len(failures)} of {gates} gates failed", "bold red"
    for row, gate in failures:
        yield f"  {row.label}: {gate.words}", "red"
