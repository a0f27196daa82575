"""Uniform allocation: every linear keeps the same share of its parameters."""

from __future__ import annotations

from collections.abc import Sequence

from .plan import LinearShape


def uniform(shapes: Sequence[LinearShape], target: float) -> list[float]:
    """Wanted retention per linear."""
    return [target] * len(shapes)
