"""How a linear of rank r is stored: as two factors U V^T, or as pivot rows and what the other rows are made of."""

from __future__ import annotations

from math import sqrt
from typing import Literal, get_args

Layout = Literal["two-factor", "pivot"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

U_SUFFIX = ".lowrank_u.weight"  # m x r
V_SUFFIX = ".lowrank_v.weight"  # r x n, V^T
P_SUFFIX = ".lowrank_p.weight"  # r x n
C_SUFFIX = ".lowrank_c.weight"  # (m - r) x r
PERM_SUFFIX = ".lowrank_perm"  # m, int32; absent where it is the identity


def parameters(layout: Layout, m: int, n: int, rank: int) -> int:
    """Weights of an m x n linear at a rank; the order of the rows is not counted."""
    return rank * (m + n - (rank if layout == "pivot" else 0))


def break_even(layout: Layout, m: int, n: int) -> float:
    """The rank from which on nothing is saved: m n / (m + n) in two factors, min(m, n) with pivot rows."""
    return float(min(m, n)) if layout == "pivot" else m * n / (m + n)


def rank_for(layout: Layout, m: int, n: int, retention: float) -> float:
    """The rank, not rounded, whose parameters are `retention` x m n."""
    kept = retention * m * n
    if layout == "two-factor":
        return kept / (m + n)
    return 2 * kept / (m + n + sqrt(max(0.0, (m + n) ** 2 - 4 * kept)))  # r (m + n - r) = kept


def shapes(layout: Layout, name: str, m: int, n: int, rank: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that stand in place of `name`.weight, the order of the rows included."""
    if layout == "two-factor":
        return {name + U_SUFFIX: (m, rank), name + V_SUFFIX: (rank, n)}
    return {name + P_SUFFIX: (rank, n), name + C_SUFFIX: (m - rank, rank), name + PERM_SUFFIX: (m,)}
