"""A report as one self-contained page."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean

from .html import drawn, fill
from .report import LinearRank, Report, Row
from .svg_chart import Point, Series, line_chart
from .svg_heat import heat_map
from .words import EXPLAINED, HEADINGS, cells, one_line

IN_BLOCK = re.compile(r"\.(\d+)\.(.+)$")  # number of a block, and path in it, of a module


def report_page(report: Report) -> str:
    """The whole HTML document: verdict, figures, charts, gates, texts, provenance."""
    charts = [(caption, chart) for caption, chart in _charts(report) if chart]
    return fill(
        "report.html",
        title=f"{_subject(report)}: release gate",
        report=report,
        subject=_subject(report),
        gates=sum(len(row.gates) for row in report.rows),
        headings=HEADINGS,
        groups=[
            [(f"{row.backend} {row.quantization}", row, cells(row)) for row in rows]
            for _, rows in groupby(report.rows, key=lambda row: (row.backend, row.quantization))
        ],
        explained=EXPLAINED,
        captions=[caption for caption, _ in charts],
        charts=drawn(chart for _, chart in charts),
        prompts=_texts(report),
        hashes={Path(row.path).name: row.sha256 for row in report.rows},
        command=shlex.join(["lowrank-export", *map(str, report.provenance.get("command", []))]),
    )


def _subject(report: Report) -> str:
    return str(report.provenance.get("base_model") or Path(report.rows[0].path).name)


def _charts(report: Report) -> list[tuple[str, str]]:
    """(caption, chart); an empty chart where there is nothing to draw."""
    ran = [row for row in report.rows if not row.error]
    shipped = [row for row in ran if row.gates] or ran  # the float32 torch models would push them into a corner
    dense = report.dense
    level = ("dense torch model", dense.perplexity.value) if dense else None
    return [
        (
            "Perplexity against bytes",
            _by_bytes(shipped, lambda row: (row.perplexity.value, row.perplexity.standard_error), "PPL", level),
        ),
        (
            "KL divergence from the dense model against bytes",
            _by_bytes(
                shipped, lambda row: (row.quality.mean_kld, row.quality.kld_error) if row.quality else None, "KLD"
            ),
        ),
        (
            "Decode speed against bytes",
            _by_bytes(shipped, lambda row: (row.speed.decode.median, 0.0) if row.speed else None, "tokens per second"),
        ),
        (
            "Prefill speed against bytes",
            _by_bytes(shipped, lambda row: (row.speed.prefill.median, 0.0) if row.speed else None, "tokens per second"),
        ),
        # colors go by place: those that the charts above show first
        ("KL divergence along the window", _by_position(sorted(ran, key=lambda row: row not in shipped))),
        ("Rank of every linear", _heat(report, lambda item: float(item.rank), "rank")),
        ("Retention of every linear", _heat(report, lambda item: item.retention, "retention")),
        ("Retention by block", _mean_retention(report)),
        ("Bits per weight of every linear", _size_heat(report, "bits", "bits per weight")),
        ("Predicted loss of every linear", _size_heat(report, "loss", "predicted loss in nats per token")),
    ]


def _by_bytes(
    rows: Sequence[Row],
    value: Callable[[Row], tuple[float, float] | None],
    y_label: str,
    reference: tuple[str, float] | None = None,
) -> str:
    """A series per runtime and type; dense and factored are joined."""
    series: dict[str, list[Point]] = {}
    for row in rows:
        if (found := value(row)) is not None:
            label = f"{row.backend} {row.quantization}"
            series.setdefault(label, []).append(Point(row.bytes / 1e6, found[0], found[1]))
    return _chart(series, f"{y_label} against bytes", "MB", y_label, reference)


def _by_position(rows: Sequence[Row]) -> str:
    series = {
        row.label: [Point(at.position, at.mean_kld) for at in row.quality.by_position] for row in rows if row.quality
    }
    if not series:
        series = {
            row.label: [Point(at.position, at.mean_kld) for at in row.parity.by_position] for row in rows if row.parity
        }
    return _chart(series, "KL divergence along the window", "tokens seen", "KLD")


def _heat(report: Report, value: Callable[[LinearRank], float], what: str) -> str:
    if not report.ranks:
        return ""
    return heat_map(
        {(item.linear, item.block): value(item) for item in report.ranks},
        rows=list(dict.fromkeys(item.linear for item in report.ranks)),
        columns=sorted({item.block for item in report.ranks}),
        title=f"{what} by block and linear",
        x_label="block",
    )


def _size_heat(report: Report, value: str, what: str) -> str:
    """What a size was spent on, where one was asked for: of factored and dense linears alike."""
    matrices = report.provenance.get("size", {}).get("matrices", {})
    found = {
        (place[2], int(place[1])): float(facts[value])
        for module, facts in matrices.items()
        if (place := IN_BLOCK.search(module))
    }
    if not found:
        return ""
    return heat_map(
        found,
        rows=list(dict.fromkeys(linear for linear, _ in found)),
        columns=sorted({block for _, block in found}),
        title=f"{what} by block and linear",
        x_label="block",
    )


def _mean_retention(report: Report) -> str:
    blocks = groupby(report.ranks, key=lambda item: item.block)
    points = [Point(block, fmean(item.retention for item in items)) for block, items in blocks]
    return _chart({"mean of its factored linears": points}, "retention by block", "block", "kept / original")


def _chart(
    series: dict[str, list[Point]],
    title: str,
    x_label: str,
    y_label: str,
    reference: tuple[str, float] | None = None,
) -> str:
    kept = [Series(label, tuple(p for p in points if math.isfinite(p.y))) for label, points in series.items()]
    kept = [one for one in kept if one.points]
    if not kept:
        return ""
    return line_chart(kept, title=title, x_label=x_label, y_label=y_label, reference=reference)


def _texts(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """(prompt and how, [(who wrote it, text)]); those who agree together, dense first."""
    found = []
    writers = [row for row in report.rows if row.writing]
    for kind in ("greedy", "sampled"):
        for index, sample in enumerate(getattr(writers[0].writing, kind) if writers else ()):
            labels: dict[str, list[str]] = {}
            for row in writers:
                labels.setdefault(one_line(getattr(row.writing, kind)[index].text), []).append(row.label)
            how = "greedy" if sample.seed is None else f"sampled, seed {sample.seed}"
            found.append((f"“{sample.prompt}”, {how}", [(", ".join(who), text) for text, who in labels.items()]))
    return found
