"""Wanted retention per linear -> ranks that are multiples, meet the budget and never exceed it."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from ..core.errors import UsageError
from .plan import LinearPlan, LinearShape, RankPlan


def round_ranks(
    shapes: Sequence[LinearShape],
    wanted: Sequence[float],
    *,
    target: float,
    rank_multiple: int,
    keep_dense: frozenset[str] = frozenset(),
    tolerance: float = 0.0,
    importance: tuple[float, ...] = (),
) -> RankPlan:
    """Round wanted retentions to ranks.

    Ranks start at the multiple below the wanted rank (at least one multiple). Then, under the parameter budget
    `target` x original, multiples go one by one to the linear furthest below its wanted rank, or are taken from the
    one furthest above. Where no multiple fits into what is left, one moves from a cheaper linear to a dearer.

    Args:
        shapes: the linears, in model order.
        wanted: retention per linear; 1 or more keeps it dense.
        target: retention over all compressed linears.
        rank_multiple: ranks are multiples of this.
        keep_dense: names that stay dense and do not count.
        tolerance: share of the target that may stay unused before ranks are added to what rounding down gave.

    Raises:
        UsageError: the multiple does not fit a matrix, or the target cannot be met with it.
    """
    ranks: dict[int, int] = {}
    ideal = {i: s.rank_for(min(1.0, w)) for i, (s, w) in enumerate(zip(shapes, wanted, strict=True))}
    budget = target * sum(s.parameters for s in shapes if s.name not in keep_dense)
    for i, shape in enumerate(shapes):
        if shape.name in keep_dense:
            continue
        if wanted[i] >= 1:
            budget -= shape.parameters
        elif rank_multiple >= shape.break_even_rank:
            raise UsageError(
                f"rank multiple {rank_multiple} is too large for {shape.name} ({shape.out_features} x "
                f"{shape.in_features}): factors save nothing from rank {shape.break_even_rank:.0f} on; "
                f"use a smaller --rank-multiple or --keep-dense '{shape.name}'"
            )
        else:
            below = min(int(ideal[i]), ceil(shape.break_even_rank) - 1)
            ranks[i] = max(rank_multiple, below // rank_multiple * rank_multiple)
    _fit_budget(ranks, ideal, shapes, budget, tolerance * budget, rank_multiple, target)
    linears = tuple(LinearPlan(s, ranks.get(i), compressed=s.name not in keep_dense) for i, s in enumerate(shapes))
    return RankPlan(linears, target, rank_multiple, importance)


def _fit_budget(
    ranks: dict[int, int],
    ideal: dict[int, float],
    shapes: Sequence[LinearShape],
    budget: float,
    spare: float,
    step: int,
    target: float,
) -> None:
    """Move `ranks` to the budget in place, one multiple at a time."""
    spent = sum(shapes[i].parameters_at(rank) for i, rank in ranks.items())
    while spent > budget:
        shrinkable = [i for i, rank in ranks.items() if rank > step]
        if not shrinkable:
            raise UsageError(
                f"retention {target:g} cannot be met with rank multiple {step}: the smallest plan keeps "
                f"{spent / budget * target if budget > 0 else float('inf'):.3g}; raise --retention or lower "
                "--rank-multiple"
            )
        i = max(shrinkable, key=lambda i: ranks[i] - ideal[i])
        ranks[i] -= step
        spent -= _cost(shapes[i], ranks[i], step)
    while budget - spent > spare:
        growable = [
            i
            for i, rank in ranks.items()
            if spent + _cost(shapes[i], rank, step) <= budget and rank + step < shapes[i].break_even_rank
        ]
        if not growable:
            _exchange(ranks, ideal, shapes, budget - spent, step)
            return
        i = max(growable, key=lambda i: ideal[i] - ranks[i])
        spent += _cost(shapes[i], ranks[i], step)
        ranks[i] += step


def _cost(shape: LinearShape, rank: int, step: int) -> int:
    """Parameters that `step` more ranks take; with pivot rows the more ranks, the fewer."""
    return shape.parameters_at(rank + step) - shape.parameters_at(rank)


def _exchange(
    ranks: dict[int, int], ideal: dict[int, float], shapes: Sequence[LinearShape], unused: float, step: int
) -> None:
    """Use up what no multiple fits into: take one from a cheaper linear and give one to a dearer, in place."""
    while True:
        by_surplus = sorted(ranks, key=lambda i: ranks[i] - ideal[i])
        shrinkable = {_cost(shapes[i], ranks[i] - step, step): i for i in by_surplus if ranks[i] > step}
        growable = {
            _cost(shapes[i], ranks[i], step): i
            for i in reversed(by_surplus)
            if ranks[i] + step < shapes[i].break_even_rank
        }
        gains = {
            dear - cheap: (source, target)
            for cheap, source in shrinkable.items()
            for dear, target in growable.items()
            if 0 < dear - cheap <= unused
        }
        if not gains:
            return
        gain = max(gains)
        source, target = gains[gain]
        ranks[source] -= step
        ranks[target] += step
        unused -= gain
