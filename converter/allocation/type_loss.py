"""Allocation of SVD-LLM V2: among linears of one type, what loses more is compressed less."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .plan import LinearShape


def type_loss(
    shapes: Sequence[LinearShape], types: Sequence[str], losses: Sequence[float], target: float
) -> list[float]:
    """Wanted retention per linear: the compression of a linear is its share of 1 / log(loss) within its type.

    SVD-LLM V2 (NAACL 2025), algorithm 1: with L the loss of truncating to the target, R the target compression and the
    G linears of one type, R_i = G R (1 / log L_i) / sum_j (1 / log L_j). The mean over a type is R.

    The paper states no guard; two are needed. Log L must be positive: losses below e count as e. A compression above 1
    is cut to 1, and what is cut off goes to the others of the type in proportion.

    Args:
        shapes: the linears to compress.
        types: matrix type of each; linears of one type have one shape.
        losses: ||(W - U V^T) X||_F of each, summed over tokens (not a mean: the logarithm depends on the unit).
        target: retention over all linears, in (0, 1].
    """
    wanted = [1.0] * len(shapes)
    for kind in dict.fromkeys(types):
        members = [i for i, other in enumerate(types) if other == kind]
        scores = [1 / math.log(max(losses[i], math.e)) for i in members]
        for i, compression in zip(members, _shared_out((1 - target) * len(members), scores), strict=True):
            wanted[i] = 1 - compression
    return wanted


def _shared_out(total: float, scores: Sequence[float]) -> list[float]:
    """`total` in proportion to positive scores, none above 1."""
    shares = [0.0] * len(scores)
    free = set(range(len(scores)))
    while free:
        left = total - (len(scores) - len(free))
        unit = left / sum(scores[i] for i in free)
        full = {i for i in free if unit * scores[i] > 1}
        if not full:
            for i in free:
                shares[i] = unit * scores[i]
            break
        for i in full:
            shares[i] = 1.0
        free -= full
    return shares
