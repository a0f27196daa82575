"""One multiplier for the whole model: the least loss that the budget can buy."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_export.converter.allocation.plan import LinearShape
from lowrank_export.converter.allocation.threshold import threshold
from lowrank_export.converter.checkpoint.layouts import Layout


def energies_of(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator, dtype=torch.float64).sort(descending=True).values.cumprod(0)


def loss(shape: LinearShape, energy: torch.Tensor, retention: float) -> float:
    if retention >= 1:
        return 0.0
    return float(energy[round(shape.rank_for(retention)) :].sum())


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(3, 9), st.integers(3, 9)), min_size=2, max_size=3),
    target=st.floats(0.3, 0.95),
    seed=st.integers(0, 99),
    layout=st.sampled_from(["two-factor", "pivot"]),
)
def test_nothing_within_what_it_spends_loses_less(
    sizes: list[tuple[int, int]], target: float, seed: int, layout: Layout
) -> None:
    """Against every plan there is: no other with at most its parameters has a smaller loss."""
    shapes = [LinearShape(str(i), 0, m, n, layout) for i, (m, n) in enumerate(sizes)]
    energies = [energies_of(min(m, n), seed + i) for i, (m, n) in enumerate(sizes)]
    found = threshold(shapes, energies, target)
    spent = sum(w * s.parameters for w, s in zip(found, shapes, strict=True))
    budget = target * sum(s.parameters for s in shapes)
    least = sum(s.parameters_at(1) for s in shapes)
    assert spent <= budget * (1 + 1e-9) or spent == pytest.approx(least)  # one rank each is the smallest plan
    best = sum(loss(s, e, w) for s, e, w in zip(shapes, energies, found, strict=True))
    choices = []
    for shape, energy in zip(shapes, energies, strict=True):
        ranks = [r for r in range(1, len(energy) + 1) if r < shape.break_even_rank]
        options = [(shape.parameters_at(r), float(energy[r:].sum())) for r in ranks]
        choices.append([*options, (shape.parameters, 0.0)])
    for plan in product(*choices):
        if sum(cost for cost, _ in plan) <= spent * (1 + 1e-12):
            assert sum(lost for _, lost in plan) >= best * (1 - 1e-9) - 1e-12


def test_a_linear_that_matters_more_keeps_more_and_may_stay_dense() -> None:
    shapes = [LinearShape("a", 0, 40, 40), LinearShape("b", 1, 40, 40)]
    energy = energies_of(40, 1) + 1e-3
    even = threshold(shapes, [energy, energy], 0.5)
    assert even[0] == even[1]
    uneven = threshold(shapes, [energy, 1e4 * energy], 0.7)
    assert uneven[1] == 1 and uneven[0] < 0.5


def test_everything_asked_for_is_everything_kept() -> None:
    assert threshold([LinearShape("a", 0, 4, 4)], [torch.ones(4, dtype=torch.float64)], 1.0) == [1.0]
