"""Global allocation: one multiplier for the whole model, in units of the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .plan import LinearShape

BISECTIONS = 100


def threshold(shapes: Sequence[LinearShape], energies: Sequence[Tensor], target: float) -> list[float]:
    """Wanted retention per linear that minimizes the total discarded energy under the parameter budget.

    minimize sum_i loss_i(r_i) subject to sum_i parameters_i(r_i) <= target x original, by bisection on the multiplier
    of the budget. For a given multiplier every linear chooses alone among its ranks below break-even and staying dense,
    which costs all parameters and no loss. Nothing else is tuned: energies of different linears are compared as they
    are, so they must be in one unit, as those of the two-sided metric are.

    Args:
        shapes: the linears to compress.
        energies: per linear its squared singular values in the metric, descending (min(m, n),) float64; what a rank
            discards is the sum of those after it.
        target: retention over all linears, in (0, 1].

    Returns:
        Retention per linear, 1 where it stays dense.
    """
    if target >= 1:
        return [1.0] * len(shapes)
    choices = [_choices(shape, energy) for shape, energy in zip(shapes, energies, strict=True)]
    budget = target * sum(shape.parameters for shape in shapes)
    low, high = math.log(1e-30), math.log(1e30)  # in logarithms of energy per parameter
    scale = sum(float(energy.sum()) for energy in energies) / budget or 1.0

    def choose(multiplier: float) -> list[float]:
        return [float(cost[(loss + multiplier * cost).argmin()]) for cost, loss in choices]

    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        fits = sum(choose(scale * math.exp(middle))) <= budget
        low, high = (low, middle) if fits else (middle, high)
    return [kept / shape.parameters for kept, shape in zip(choose(scale * math.exp(high)), shapes, strict=True)]


def _choices(shape: LinearShape, energy: Tensor) -> tuple[Tensor, Tensor]:
    """Parameters and loss of every rank below break-even, and last of the dense weight."""
    cost = torch.tensor([shape.parameters_at(rank) for rank in range(1, len(energy) + 1)], dtype=torch.float64)
    loss = (energy.sum() - energy.cumsum(0)).clamp(min=0).cpu()
    saves = cost < shape.parameters
    dense = torch.tensor([float(shape.parameters)], dtype=torch.float64)
    return torch.cat([cost[saves], dense]), torch.cat([loss[saves], torch.zeros(1, dtype=torch.float64)])
