"""Descent: the parameters of the epoch with the least held-out loss are kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lowrank_export.converter.training.descent import Objective, Schedule, descend


def test_descends_a_quadratic_and_keeps_the_best_epoch() -> None:
    goal = torch.linspace(1, 2, 8)
    parameter = nn.Parameter(torch.ones(8))
    losses: list[float] = []

    def backward(_: list[int]) -> None:
        (parameter - goal).square().sum().backward()

    def held_out_loss() -> float:
        losses.append(float((parameter - goal).square().sum().detach()) + (5.0 if len(losses) == 3 else 0.0))
        return losses[-1]

    done = descend([parameter], Objective(4, 2, backward, held_out_loss), Schedule(6, 0.1, 0))
    assert done.before == losses[0] and done.after == min(losses) < done.before
    assert float((parameter.detach() - goal).square().sum()) == pytest.approx(min(losses), rel=1e-5)


def test_stops_where_nothing_gets_better_and_leaves_the_start() -> None:
    parameter = nn.Parameter(torch.ones(3))
    losses = iter(range(1, 99))

    def backward(_: list[int]) -> None:
        parameter.sum().backward()

    done = descend([parameter], Objective(2, 1, backward, lambda: float(next(losses))), Schedule(50, 0.1, 0))
    assert done.epochs == 3 and done.before == done.after == 1
    assert torch.equal(parameter, torch.ones(3))
