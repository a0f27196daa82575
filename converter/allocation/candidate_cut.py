"""ASVD's allocation: candidates of every linear in one list by sensitivity, and the cut that meets the budget."""

from __future__ import annotations

from collections.abc import Sequence

from .plan import LinearShape

TENTHS = tuple(tenths / 10 for tenths in range(1, 10))
MEASURED = TENTHS[3:]  # what ASVD's code measures a perplexity at, in its latest version; the older ones start at 0.1


def measured_retentions(target: float) -> tuple[float, ...]:
    """Retentions to measure every linear at: those of ASVD's code, and the lower ones where the target needs them."""
    return MEASURED if target >= MEASURED[0] else TENTHS


def stable_rank_scores(stable_rank: float, retentions: Sequence[float]) -> list[float]:
    """Sensitivities without any measurement: -sr x retention^0.1, as in ASVD's code.

    Args:
        stable_rank: sr = ||W||_F / ||W||_2, of the weight alone. A linear of a low one counts as sensitive.
        retentions: the candidates.
    """
    return [-stable_rank * retention**0.1 for retention in retentions]


def candidate_cut(
    shapes: Sequence[LinearShape], scores: Sequence[Sequence[float]], retentions: Sequence[float], target: float
) -> list[float]:
    """Wanted retention per linear.

    A candidate is a linear at a retention. Candidates are taken by rising sensitivity until the parameters meet the
    target; a linear gets the lowest retention taken for it, and stays dense where none is. This is the cut that ASVD's
    binary search looks for; its code ends up to one candidate beside it.

    Args:
        shapes: the linears to compress.
        scores: per linear the sensitivity at each of `retentions`; more is worse.
        retentions: of the candidates.
        target: retention over all linears, in (0, 1].

    Returns:
        Retention per linear, 1 where it stays dense. Above the target only where every candidate was taken.
    """
    wanted = [1.0] * len(shapes)
    kept = float(sum(shape.parameters for shape in shapes))
    budget = target * kept * (1 + 1e-9)
    candidates = [
        (score, i, retention) for i, row in enumerate(scores) for score, retention in zip(row, retentions, strict=True)
    ]
    for _, i, retention in sorted(candidates):
        if kept <= budget:
            break
        if retention < wanted[i]:
            kept -= (wanted[i] - retention) * shapes[i].parameters
            wanted[i] = retention
    return wanted
