"""A comparison as one self-contained page: no network, no script; light and dark, phone and desktop."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from ..report.html import drawn, fill
from ..report.svg_chart import Point, Series, line_chart
from .compare_results import CompareRow, Comparison
from .compare_table import HEADINGS, INCLUDED, cells, cost_cells, dense_cells, evaluation_words, samples


def page(comparison: Comparison) -> str:
    """The whole HTML document. It is well-formed XML too, so that any parser reads it."""
    groups = [
        [(row.method, cells(row), (row.method, row.retention) in comparison.best) for row in rows]
        for _, rows in groupby(comparison.rows, key=lambda row: row.retention)
    ]
    return fill(
        "compare.html",
        title=f"{comparison.source['spec']}: methods compared",
        comparison=comparison,
        charts=drawn(_charts(comparison)),
        headings=[_one_line(heading) for heading in HEADINGS],
        dense=dense_cells(comparison.dense),
        groups=groups,
        statistics=[(g.kind, g.methods, cost_cells(g.cost)) for g in comparison.statistics],
        evaluation_words=evaluation_words(comparison),
        included=INCLUDED,
        samples=samples(comparison),
        command=_command(comparison),
    )


def _charts(comparison: Comparison) -> list[str]:
    dense = comparison.dense.perplexity.value
    return [
        line_chart(
            _series(comparison, lambda row: (row.measured.perplexity.value, row.measured.perplexity.standard_error)),
            title="Perplexity against retention",
            x_label="retention",
            y_label="PPL",
            reference=("dense", dense),
        ),
        line_chart(
            _series(comparison, lambda row: (row.measured.quality.mean_kld if row.measured.quality else 0.0, 0.0)),
            title="KL divergence from the dense model against retention",
            x_label="retention",
            y_label="KLD in nats per token",
        ),
    ]


def _series(comparison: Comparison, value: Callable[[CompareRow], tuple[float, float]]) -> list[Series]:
    return [
        Series(method, tuple(Point(row.kept, *value(row)) for row in comparison.rows if row.method == method))
        for method in comparison.methods
    ]


def _one_line(heading: str) -> str:
    return heading.replace("/\n", "/").replace("-\n", "-" if heading.startswith("same") else "").replace("\n", " ")


def _command(comparison: Comparison) -> str:
    """The options that make these rows again, but for the recipe's other keys, which the page lists."""
    retentions = sorted({row.retention for row in comparison.rows}, reverse=True)
    chosen = " ".join(f"--retention {retention:g}" for retention in retentions)
    return (
        f"lowrank-export compare --model {comparison.source['spec']} --methods {','.join(comparison.methods)} {chosen} "
        f"--evaluate {comparison.evaluation['evaluation_text']} --out DIR"
    )
