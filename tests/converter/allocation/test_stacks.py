"""One rank for a linear of all experts: shapes, budget and losses of stacks."""

from __future__ import annotations

import pytest
import torch

from lowrank_export.converter.allocation.plan import LinearShape
from lowrank_export.converter.allocation.rounding import round_ranks
from lowrank_export.converter.allocation.stacks import members_of, stacked, summed, unstacked


def stack(name: str) -> str:
    return "*." + name.partition(".")[2] if name[0].isdigit() else name


SHAPES = [
    LinearShape("q", 0, 48, 64),
    *(LinearShape(f"{e}.{name}", 0, *size) for e in range(3) for name, size in (("up", (80, 64)), ("down", (64, 80)))),
]


@pytest.mark.parametrize("target", [0.3, 0.55, 0.8])
def test_a_plan_of_stacks_meets_the_budget_of_their_linears(target: float) -> None:
    stacks = stacked(SHAPES, stack)
    assert [(shape.name, shape.copies) for shape in stacks] == [("q", 1), ("*.up", 3), ("*.down", 3)]
    assert sum(shape.parameters for shape in stacks) == sum(shape.parameters for shape in SHAPES)
    plan = round_ranks(stacks, [target] * 3, target=target, rank_multiple=2)
    found = unstacked(plan, SHAPES, stack)
    assert [linear.shape.name for linear in found.linears] == [shape.name for shape in SHAPES]
    assert len({found.ranks[f"{e}.up"] for e in range(3)}) == 1
    assert found.kept_parameters == plan.kept_parameters <= target * sum(shape.parameters for shape in SHAPES)
    assert found.retention > target - 0.05


def test_losses_are_added_by_how_often_they_count() -> None:
    energies = {name: torch.tensor([4.0, 2.0, 1.0]) for name in ("q", "0.up", "1.up")}
    found = summed(energies, {"0.up": 0.5, "1.up": 0.25}, stack)
    assert found["q"].tolist() == [4.0, 2.0, 1.0]
    assert found["*.up"].tolist() == [3.0, 1.5, 0.75]
    assert members_of(energies, stack) == {"q": ["q"], "*.up": ["0.up", "1.up"]}
