"""Allocation after LC-SVD's abstract: candidates of every block, scored by the error that each causes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from .plan import LinearShape

LARGEST = 1e300  # stands for the error of a truncation that overflows
Point = tuple[float, float]  # retention and error of a candidate


def block_error(
    shapes: Sequence[LinearShape], errors: Mapping[int, Sequence[float]], retentions: Sequence[float], target: float
) -> list[float]:
    """Wanted retention per linear, the same for all linears of a block.

    minimize sum_b error_b(r_b) subject to sum_b r_b parameters_b = target x original, where error_b is the lower convex
    hull of block b's candidates. All blocks start at the lowest retention, and steps along the hulls are taken by the
    error that they save per parameter, the last of them in part: every other block ends on one of its candidates.

    Args:
        shapes: the linears to compress.
        errors: block -> its error at each of `retentions`, in a unit that all blocks share.
        retentions: of the candidates, rising; the last is 1, the dense block.
        target: retention over all linears, in (0, 1]. Below the lowest candidate every block gets the target.
    """
    if target <= retentions[0] or target >= 1:
        return [target] * len(shapes)
    parameters = dict.fromkeys(errors, 0)
    for shape in shapes:
        parameters[shape.block] += shape.parameters
    steps = []
    for block, row in errors.items():
        points = list(zip(retentions, (min(error, LARGEST) for error in row), strict=True))
        steps += [(_saving(a, b) / parameters[block], block, a[0], b[0]) for a, b in pairwise(_hull(points))]
    wanted = dict.fromkeys(errors, retentions[0])
    left = (target - retentions[0]) * sum(parameters.values())
    for _, block, low, high in sorted(steps, key=lambda step: -step[0]):  # stable: those of a block stay in order
        cost = (high - low) * parameters[block]
        if cost > left * (1 + 1e-9):
            wanted[block] = low + left / parameters[block]
            break
        wanted[block] = high
        left = max(0.0, left - cost)
    return [wanted[shape.block] for shape in shapes]


def _hull(points: Sequence[Point]) -> list[Point]:
    """Those on the lower convex hull: less and less is saved from one to the next. The first and the last are."""
    hull: list[Point] = []
    for point in points:
        while len(hull) > 1 and _saving(hull[-2], hull[-1]) <= _saving(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _saving(low: Point, high: Point) -> float:
    """Error that more retention saves, per retention."""
    return (low[1] - high[1]) / (high[0] - low[0])
