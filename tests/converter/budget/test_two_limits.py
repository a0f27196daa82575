"""The knapsack under two limits against brute force, and against the bound that its multipliers give."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_export.converter.budget.choice import choose, smallest
from lowrank_export.converter.budget.forms import Candidate, Form
from lowrank_export.converter.budget.two_limits import choose_within, fewest_flops, total_flops

FORM = Form(("q8_0",))
candidate = st.builds(
    Candidate, st.integers(1, 60), st.integers(0, 1000).map(lambda x: x / 100), st.just(FORM), st.integers(0, 50)
)
few = st.lists(st.lists(candidate, min_size=1, max_size=4), min_size=1, max_size=5)


def every(candidates: list[list[Candidate]], budget: int) -> list[tuple[int, float]]:
    """Operations and loss of all choices that fit into the bytes."""
    fitting = [chosen for chosen in product(*candidates) if sum(c.bytes for c in chosen) <= budget]
    return [(total_flops(chosen), sum(c.loss for c in chosen)) for chosen in fitting]


@given(few, st.integers(0, 100), st.integers(0, 200))
@settings(deadline=None)
def test_both_limits_are_met_or_refused(candidates: list[list[Candidate]], beyond: int, more: int) -> None:
    budget = smallest(candidates) + beyond
    choices = every(candidates, budget)
    fewest, loss = min(choices)
    least = fewest_flops(candidates, budget)
    assert (total_flops(least), sum(c.loss for c in least)) == (fewest, pytest.approx(loss, abs=1e-9))
    chosen = choose_within(candidates, budget, fewest + more)
    assert sum(c.bytes for c in chosen) <= budget
    assert total_flops(chosen) <= fewest + more
    found = sum(c.loss for c in chosen)
    assert found <= loss + 1e-9  # no worse than the choice that is always allowed
    assert found >= min(loss for flops, loss in choices if flops <= fewest + more) - 1e-9
    with pytest.raises(ValueError, match=f"at least {fewest}"):
        choose_within(candidates, budget, fewest - 1)


@given(few, st.integers(0, 100))
@settings(deadline=None)
def test_a_limit_that_is_met_anyway_changes_nothing(candidates: list[list[Candidate]], beyond: int) -> None:
    budget = smallest(candidates) + beyond
    free = choose(candidates, budget)
    assert choose_within(candidates, budget, total_flops(free)) == free


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
def test_comes_near_the_bound_of_the_multipliers(share: float) -> None:
    """No choice is better than max over mu, nu of sum_i min_j (loss + mu bytes + nu flops) - mu budget - nu limit."""
    random = np.random.default_rng(5)
    models = []
    for _ in range(80):
        size, weight = random.integers(200, 2000), random.lognormal(0, 1)
        dense = [Candidate(int(size * bits), float(weight * 4.0**-bits), FORM, 2 * size) for bits in (2, 3, 4, 5, 8)]
        factors = [
            Candidate(
                int(size * part * bits), float(weight * (4.0**-bits + (1 - part) ** 3)), FORM, int(2 * size * part)
            )
            for part in (0.2, 0.4, 0.6, 0.8)
            for bits in (4, 8)
        ]
        models.append(dense + factors)
    budget = sum(found[2].bytes for found in models)
    limit = int(share * sum(found[0].flops for found in models))
    chosen = choose_within(models, budget, limit)
    assert sum(c.bytes for c in chosen) <= budget and total_flops(chosen) <= limit
    loss, bytes, flops = (
        np.array([[getattr(c, key) for c in found] for found in models], dtype=float)
        for key in ("loss", "bytes", "flops")
    )
    bound = max(
        float((loss + mu * bytes + nu * flops).min(axis=1).sum() - mu * budget - nu * limit)
        for mu in np.geomspace(1e-8, 1e-1, 120)
        for nu in (0.0, *np.geomspace(1e-8, 1e-1, 120))
    )
    assert bound <= sum(c.loss for c in chosen) <= 1.03 * bound
