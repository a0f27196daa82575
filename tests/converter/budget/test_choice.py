"""The knapsack against brute force, and what must hold of every choice."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_export.converter.budget import choice
from lowrank_export.converter.budget.choice import choose, lower_hull, smallest
from lowrank_export.converter.budget.forms import Candidate, Form

FORM = Form(("q8_0",))
candidate = st.builds(Candidate, st.integers(1, 60), st.floats(0, 10).map(lambda x: round(x, 2)), st.just(FORM))
few = st.lists(st.lists(candidate, min_size=1, max_size=4), min_size=1, max_size=5)
many = st.lists(st.lists(candidate, min_size=1, max_size=8), min_size=1, max_size=14)


def total(chosen: list[Candidate]) -> tuple[int, float]:
    return sum(c.bytes for c in chosen), sum(c.loss for c in chosen)


def brute_force(candidates: list[list[Candidate]], budget: int) -> float:
    """The least loss of all choices that fit."""
    every = [total(list(chosen)) for chosen in product(*candidates)]
    return min(loss for bytes, loss in every if bytes <= budget)


@given(few, st.integers(0, 100))
def test_is_the_optimum_of_small_sets(candidates: list[list[Candidate]], beyond: int) -> None:
    budget = smallest(candidates) + beyond
    bytes, loss = total(choose(candidates, budget))
    assert bytes <= budget
    assert loss == pytest.approx(brute_force(candidates, budget), abs=1e-9)


@given(few, st.integers(0, 100))
def test_hulls_are_optimal_at_their_own_bytes(candidates: list[list[Candidate]], beyond: int) -> None:
    """Every point of the path of one multiplier is the optimum of its bytes; in between no step is left that fits."""
    hulls = [lower_hull(found) for found in candidates]
    steps = choice._steps(hulls)
    least = sum(hull[0].bytes for hull in hulls)
    count = min(beyond, len(steps.owner))
    budget = least + int(steps.bytes[:count].sum())
    bytes, loss = total(choice._along_hulls(hulls, budget))
    assert bytes <= budget
    assert loss == pytest.approx(brute_force(candidates, budget), abs=1e-9)


@given(many, st.integers(0, 300), st.integers(0, 100))
@settings(deadline=None)
def test_more_bytes_never_give_more_loss(candidates: list[list[Candidate]], first: int, more: int) -> None:
    hulls, budget = [lower_hull(found) for found in candidates], smallest(candidates) + first
    for solve in (lambda b: choose(candidates, b), lambda b: choice._along_hulls(hulls, b)):
        (used, loss), (used_more, less) = total(solve(budget)), total(solve(budget + more))
        assert used <= budget and used_more <= budget + more
        assert less <= loss + 1e-9


@given(many, st.integers(0, 300))
@settings(deadline=None)
def test_hulls_come_near_the_optimum(candidates: list[list[Candidate]], beyond: int) -> None:
    """No worse than the path of one multiplier, which leaves at most one step of it unused."""
    hulls, budget = [lower_hull(found) for found in candidates], smallest(candidates) + beyond
    steps = choice._steps(hulls)
    left = budget - sum(hull[0].bytes for hull in hulls)
    fits = [bool(steps.bytes[: k + 1].sum() <= left) for k in range(len(steps.owner))]
    path = sum(hull[0].loss for hull in hulls) - float(steps.gain[fits].sum())
    bytes, loss = total(choice._along_hulls(hulls, budget))
    assert bytes <= budget
    assert loss <= path + 1e-9


def test_a_step_too_large_leaves_room_for_smaller_ones() -> None:
    """An embedding whose next type does not fit must not keep every linear from its own."""
    embedding = [Candidate(0, 100.0, FORM), Candidate(1000, 0.0, FORM)]
    linears = [[Candidate(0, 1.0, FORM), Candidate(20, 0.0, FORM)] for _ in range(20)]
    hulls = [lower_hull(found) for found in [embedding, *linears]]
    assert total(choice._along_hulls(hulls, 390)) == (380, pytest.approx(101.0))


def test_the_hull_is_convex_and_dominates() -> None:
    found = [
        Candidate(bytes, loss, FORM) for bytes, loss in [(4, 1.0), (1, 5.0), (2, 4.9), (3, 1.5), (5, 1.0), (1, 6.0)]
    ]
    assert [(c.bytes, c.loss) for c in lower_hull(found)] == [(1, 5.0), (3, 1.5), (4, 1.0)]


def test_too_few_bytes() -> None:
    with pytest.raises(ValueError, match="smallest"):
        choose([[Candidate(10, 0.0, FORM)]], 9)


@given(few, st.integers(0, 100))
def test_identical_inputs_identical_choice(candidates: list[list[Candidate]], beyond: int) -> None:
    budget = smallest(candidates) + beyond
    assert choose(candidates, budget) == choose([list(found) for found in candidates], budget)
