"""adaCR: blocks that change their input more keep more (AdaSVD section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .plan import LinearShape

DEFAULT_MIN_RETENTION_SHARE = 0.5  # of the target; see docs/methods.md for the measurements behind it


def similarity(x: Tensor, y: Tensor, reading: str) -> float:
    """Similarity of a block's input and output, averaged over tokens.

    Args:
        x: block input (..., d).
        y: block output (..., d).
        reading: "cosine" takes the paper at its word; "angular" is 1 - cosine, which gives the bowl of its Figure 4
            with the first block highest.
    """
    cosine = float(torch.nn.functional.cosine_similarity(x.float(), y.float(), dim=-1).mean())
    return cosine if reading == "cosine" else 1 - cosine


def normalize(importance: Sequence[float]) -> tuple[float, ...]:
    """Importance divided by its mean (AdaSVD: I_n); uniform where the mean is not positive."""
    mean = sum(importance) / len(importance)
    return tuple(value / mean for value in importance) if mean > 0 else (1.0,) * len(importance)


def adacr(
    shapes: Sequence[LinearShape], importance: Sequence[float], target: float, minimum: float | None = None
) -> list[float]:
    """Wanted retention per linear: rho_i = mrr + I_i (trr - mrr), clamped to [0, 1].

    What clamping takes away is given back by scaling the importance of all blocks alike, so that the parameters meet
    the target again.

    Args:
        shapes: the linears to compress.
        importance: I_n per block, mean 1.
        target: trr.
        minimum: mrr; half the target by default.
    """
    floor = DEFAULT_MIN_RETENTION_SHARE * target if minimum is None else minimum
    if target >= 1:
        return [1.0] * len(shapes)
    total = sum(shape.parameters for shape in shapes)
    if target >= 1:
        return [1.0] * len(shapes)

    def wanted(scale: float) -> list[float]:
        per_block = [min(1.0, max(0.0, floor + scale * i * (target - floor))) for i in importance]
        return [per_block[shape.block] for shape in shapes]

    def retention(scale: float) -> float:
        return sum(w * s.parameters for w, s in zip(wanted(scale), shapes, strict=True)) / total

    low, high = 0.0, 1.0
    while retention(high) < target and high < 1e6:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if retention(middle) < target else (low, middle)
    return wanted(high)
