"""The rank search over blocks: the best of all configurations, the budget, and the order of sensitivities."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_export.converter.allocation.block_error import block_error
from lowrank_export.converter.allocation.plan import LinearShape

RETENTIONS = (0.2, 0.4, 0.7, 1.0)
ERROR = st.integers(0, 40).map(float)


def shapes(count: int) -> list[LinearShape]:
    """Two linears for each of `count` blocks, which differ in size."""
    return [LinearShape(f"{block}.{i}", block, 32 + 16 * (block % 3), 48) for block in range(count) for i in range(2)]


def sizes(linears: Sequence[LinearShape]) -> dict[int, int]:
    found: dict[int, int] = {}
    for linear in linears:
        found[linear.block] = found.get(linear.block, 0) + linear.parameters
    return found


def kept(linears: Sequence[LinearShape], retention: dict[int, float]) -> float:
    found = sizes(linears)
    return sum(retention[block] * size for block, size in found.items()) / sum(found.values())


def per_block(linears: Sequence[LinearShape], wanted: Sequence[float]) -> dict[int, float]:
    """The retention of every block, whose linears all have it."""
    found = {linear.block: w for linear, w in zip(linears, wanted, strict=True)}
    assert [found[linear.block] for linear in linears] == list(wanted)
    return found


@settings(max_examples=150, deadline=None)
@given(count=st.integers(1, 4), multiplier=st.floats(0.001, 0.1), data=st.data())
def test_no_configuration_within_the_budget_has_less_error(count: int, multiplier: float, data: st.DataObject) -> None:
    """Against all of them, at the budgets that candidates themselves meet: no step is taken in part there."""
    linears = shapes(count)
    errors = {block: data.draw(st.lists(ERROR, min_size=4, max_size=4)) for block in range(count)}
    costs = sizes(linears)
    configurations = [dict(enumerate(chosen)) for chosen in product(range(4), repeat=count)]

    def error(chosen: dict[int, int]) -> float:
        return sum(errors[block][k] for block, k in chosen.items())

    def share(chosen: dict[int, int]) -> float:
        return kept(linears, {block: RETENTIONS[k] for block, k in chosen.items()})

    best = min(
        configurations, key=lambda c: error(c) + multiplier * sum(RETENTIONS[k] * costs[b] for b, k in c.items())
    )
    found = per_block(linears, block_error(linears, errors, RETENTIONS, share(best)))
    assert kept(linears, found) == pytest.approx(share(best))
    least = min(error(c) for c in configurations if share(c) <= share(best) + 1e-9)
    assert interpolated(errors, found) <= least + 1e-6


def interpolated(errors: dict[int, list[float]], retention: dict[int, float]) -> float:
    """Summed error, between two candidates on the line that is lowest: the hull, by looking at all pairs."""
    total = 0.0
    for block, r in retention.items():
        points = list(zip(RETENTIONS, errors[block], strict=True))
        lines = [
            e0 + (e1 - e0) * (r - r0) / (r1 - r0)
            for (r0, e0), (r1, e1) in product(points, points)
            if r0 < r1 and r0 - 1e-9 <= r <= r1 + 1e-9
        ]
        total += min(lines)
    return total


@settings(max_examples=150, deadline=None)
@given(count=st.integers(1, 6), target=st.floats(0.05, 1.0), data=st.data())
def test_the_budget_is_met_and_at_most_one_block_is_between_candidates(
    count: int, target: float, data: st.DataObject
) -> None:
    linears = shapes(count)
    row = st.lists(st.floats(0, 1e6) | st.just(float("inf")), min_size=4, max_size=4)
    errors = {block: data.draw(row) for block in range(count)}
    found = per_block(linears, block_error(linears, errors, RETENTIONS, target))
    assert kept(linears, found) == pytest.approx(target, rel=1e-9)
    if target > RETENTIONS[0]:
        assert sum(min(abs(r - c) for c in RETENTIONS) > 1e-9 for r in found.values()) <= 1


@settings(max_examples=150, deadline=None)
@given(target=st.floats(0.05, 1.0), more=st.floats(1.01, 100), data=st.data())
def test_a_more_sensitive_block_never_gets_less(target: float, more: float, data: st.DataObject) -> None:
    linears = [LinearShape(str(block), block, 48, 48) for block in range(3)]
    row = sorted(data.draw(st.lists(ERROR, min_size=4, max_size=4, unique=True)), reverse=True)
    other = sorted(data.draw(st.lists(ERROR, min_size=4, max_size=4)), reverse=True)
    errors = {0: row, 1: [more * error for error in row], 2: other}
    wanted = block_error(linears, errors, RETENTIONS, target)
    assert wanted[1] >= wanted[0] - 1e-9


def test_a_block_that_explodes_stays_dense() -> None:
    errors = {block: [4.0, 3.0, 2.0, 1.0] for block in range(4)} | {2: [float("inf")] * 3 + [1.0]}
    linears = [LinearShape(str(block), block, 48, 48) for block in range(4)]
    wanted = block_error(linears, errors, RETENTIONS, 0.5)
    assert wanted[2] == 1.0 and sum(wanted) == pytest.approx(2.0)
