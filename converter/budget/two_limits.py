"""The knapsack under a second limit, of operations: a multiplier of theirs beside that of the bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .choice import choose
from .forms import Candidate

HALVINGS, RANGE = 20, 80
"""Of the logarithm of the multiplier, which lies within 2**RANGE of the largest that means anything."""


@dataclass(frozen=True)
class _Weighed(Candidate):
    """A candidate whose loss is a weighed sum of that of another, and of its operations."""

    of: Candidate | None = None


def fewest_flops(candidates: Sequence[Sequence[Candidate]], budget: int) -> list[Candidate]:
    """The choice with the fewest operations that fits into `budget` bytes; of equal ones the least loss.

    Raises:
        ValueError: as `choose` says.
    """
    whole = sum(max(found.loss for found in of_one) for of_one in candidates)
    return _weighed(candidates, budget, 1.0, 0.5 / whole if whole > 0.0 else 0.0)


def choose_within(candidates: Sequence[Sequence[Candidate]], budget: int, flops: int) -> list[Candidate]:
    """minimize sum_i loss_i subject to sum_i bytes_i <= budget and sum_i flops_i <= flops.

    Where the choice of the bytes alone takes too many operations, they are paid for: `choose` minimizes
    sum_i loss_i + mu flops_i, and mu is halved between too little and enough.

    Args:
        candidates: of every matrix, at least one each.
        budget: bytes.
        flops: additions and multiplications per token of a prompt.

    Raises:
        ValueError: no choice meets both.
    """
    free = choose(candidates, budget)
    if total_flops(free) <= flops:
        return free
    best = fewest_flops(candidates, budget)
    if total_flops(best) > flops:
        raise ValueError(f"{flops} operations, but {budget} bytes take at least {total_flops(best)}")
    largest = sum(max(found.loss for found in of_one) for of_one in candidates)  # no loss is worth an operation
    low, high = -float(RANGE), 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = _weighed(candidates, budget, largest * 2.0**middle, 1.0)
        if total_flops(found) > flops:
            low = middle
            continue
        high = middle
        if _loss(found) <= _loss(best):
            best = found
    return best


def total_flops(chosen: Sequence[Candidate]) -> int:
    """Operations of a choice per token of a prompt."""
    return sum(found.flops for found in chosen)


def _loss(chosen: Sequence[Candidate]) -> float:
    return sum(found.loss for found in chosen)


def _weighed(candidates: Sequence[Sequence[Candidate]], budget: int, flops: float, loss: float) -> list[Candidate]:
    """The choice that minimizes a weighed sum of operations and loss."""
    weighed = [
        [_Weighed(one.bytes, flops * one.flops + loss * one.loss, one.form, one.flops, one) for one in of_one]
        for of_one in candidates
    ]
    return [found.of for found in choose(weighed, budget) if isinstance(found, _Weighed) and found.of is not None]
