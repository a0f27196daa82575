"""A rank plan as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..converter.allocation.plan import RankPlan
from ..converter.allocation.stacks import Stack, members_of
from .forecast import ExportForecast

FALLBACK = "In a fallback: weights whose rows do not divide into the type's blocks; --json names them."

if TYPE_CHECKING:
    from rich.console import RenderableType


def plan_table(plan: RankPlan, forecasts: Mapping[str, ExportForecast], stack: Stack) -> RenderableType:
    """Ranks and retention per linear, totals, predicted bytes per export, and what rounding cost.

    Args:
        plan: the plan.
        forecasts: as `forecast_exports` gives them.
        stack: of a linear; those of a block's experts are one row.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    ranks = Table(title="Rank plan", title_justify="left")
    for column in ("linear", "out x in", "rank", "break-even", "retention"):
        ranks.add_column(column, justify="left" if column == "linear" else "right")
    of = {linear.shape.name: linear for linear in plan.linears}
    for name, members in members_of(of, stack).items():
        linear, copies = of[members[0]], f"{len(members)} x " if len(members) > 1 else ""
        shape = linear.shape
        ranks.add_row(
            name,
            f"{copies}{shape.out_features} x {shape.in_features}",
            "dense" if linear.rank is None else str(linear.rank),
            f"{shape.break_even_rank:.0f}",
            f"{linear.retention:.3f}" if linear.compressed else "kept dense",
        )
    sizes = Table(title="Predicted bytes", title_justify="left")
    for column in ("export", "dense MB", "factored MB", "factored / dense", "bits/weight", "in a fallback"):
        sizes.add_column(column, justify="left" if column == "export" else "right")
    for name, one in forecasts.items():
        dense, factored = one.dense.bytes, one.factored.bytes
        types = (f"{one.factored.bits_per_weight:.2f}", f"{one.factored.fallback_share:.1%}")
        sizes.add_row(name, f"{dense / 1e6:.1f}", f"{factored / 1e6:.1f}", f"{factored / dense:.3f}", *types)
    total = Text(
        f"Linears: {plan.original_parameters:,} -> {plan.kept_parameters:,} parameters, retention {plan.retention:.4f} "
        f"(compression {1 - plan.retention:.1%}); target {plan.target:g}, rounding to multiples of "
        f"{plan.rank_multiple} left {plan.rounding_loss:.4f} unused."
    )
    hints = [] if not any(one.factored.fallback_share for one in forecasts.values()) else [FALLBACK]
    hints += [f"{plan.few_tokens_line[:1].upper()}{plan.few_tokens_line[1:]}."] if plan.few_tokens else []
    return Group(ranks, sizes, *(Text(hint, style="dim") for hint in hints), total)
