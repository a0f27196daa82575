"""Low-rank factors -> pivot rows (PIFA, ICML 2025): the same product with r^2 fewer parameters.

A product W = U V^T of rank r has r rows that span the others. With those rows P = W[pivots] (r x n) the rest is C P,
C = U[rest] U[pivots]^-1, and r (m + n - r) numbers store all of W. Rows are chosen one after another, each the one
farthest from the span of those chosen so far: QR with column pivoting of U^T, which keeps the entries of C of order 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .factorization import LowRankFactors

BLOCK = 32  # rows chosen between two passes over all rows
CANDIDATES = 8 * BLOCK  # rows looked at in between: those farthest from the span when the block begins
SLACK = 0.25  # of a squared distance: what a candidate may lose against the best row outside


@dataclass(frozen=True)
class PivotFactors:
    """W = [P; C P] with rows in another order: p is (r, n), c is (m - r, r), both float64.

    perm (m,) int64 puts the rows back: y[i] = z[perm[i]] with z = (P x, C P x).
    """

    p: Tensor
    c: Tensor
    perm: Tensor

    @property
    def rank(self) -> int:
        """r."""
        return self.p.shape[0]

    def product(self) -> Tensor:
        """W (m, n)."""
        return torch.cat([self.p, self.c @ self.p])[self.perm]


def to_pivot(factors: LowRankFactors, order: Tensor | None = None) -> PivotFactors:
    """The same product as pivot rows; exact up to rounding, whatever the rank of U and V^T really is.

    U is replaced by an orthonormal basis Q of its columns (U = Q R), so C = Q[rest] Q[pivots]^-1 exists even where U
    is rank-deficient, and does not depend on how the product was split into factors.

    Args:
        factors: u (m, r), v (r, n).
        order: (m,) row numbers, pivots first, as `pivot_order` gives them; chosen here by default.

    Raises:
        ValueError: r is not below m: no rows would remain.
    """
    basis = orthonormal(factors.u)
    if order is None:
        order = pivot_order([basis])
    pivots = order[: factors.rank]
    return PivotFactors(factors.u[pivots] @ factors.v, coefficients(basis, order), torch.argsort(order))


def orthonormal(u: Tensor) -> Tensor:
    """An orthonormal basis (m, r), float64, of the columns of U (m, r).

    Raises:
        ValueError: r is not below m.
    """
    m, r = u.shape
    if r >= m:
        raise ValueError(f"rank {r} of {m} rows leaves no row to combine from the others")
    basis: Tensor = torch.linalg.qr(u.double()).Q
    return basis


def coefficients(basis: Tensor, order: Tensor) -> Tensor:
    """C (m - r, r): the rows after the first r of `order` as combinations of those r.

    Args:
        basis: (m, r) with independent columns.
        order: (m,) row numbers, pivots first.
    """
    rank = basis.shape[1]
    ordered = basis[order]
    solved: Tensor = torch.linalg.solve(ordered[:rank], ordered[rank:], left=False)
    return solved


def pivot_order(bases: Sequence[Tensor]) -> Tensor:
    """One order of rows whose first r_k rows are pivots of basis k, for every k at once.

    Greedy: the next row is the one with the largest product of squared distances from the spans of the rows chosen so
    far; a basis that has its r_k rows no longer counts. Distances only shrink, so within a block of steps only the
    candidates that were farthest at its beginning are looked at, as long as they stay comparable with the others.

    Args:
        bases: (m, r_k) float64 each, orthonormal columns.

    Returns:
        (m,) int64, the pivots in the order chosen, then the other rows in their own order.
    """
    spans = [_Span(basis) for basis in bases]
    chosen: list[int] = []
    free = torch.ones(bases[0].shape[0], dtype=torch.bool, device=bases[0].device)
    for start in sorted({0, *(basis.shape[1] for basis in bases)})[:-1]:
        open_spans = [span for span in spans if span.rank > start]
        stop = min(span.rank for span in open_spans)
        while len(chosen) < stop:
            picked = _choose_block(open_spans, free, min(BLOCK, stop - len(chosen)))
            free[picked] = False
            chosen += picked
            for span in open_spans:
                span.settle()
    pivots = torch.tensor(chosen, device=free.device)
    return torch.cat([pivots, free.nonzero()[:, 0]])


class _Span:
    """The rows of one basis and their squared distances from the span of those chosen so far."""

    def __init__(self, basis: Tensor) -> None:
        self.basis, self.rank = basis, basis.shape[1]
        self.distance = basis.square().sum(1)
        self._directions = basis.new_zeros(self.rank, self.rank)
        self._settled = self._count = 0

    def residuals(self, rows: Tensor) -> Tensor:
        """What of the given rows lies outside the span (k, r)."""
        known = self._directions[: self._count]
        part = self.basis[rows]
        return part - (part @ known.T) @ known

    def extend(self, residual: Tensor) -> Tensor:
        """Add a direction (r,), given what of it lies outside; returns it orthonormal."""
        known = self._directions[: self._count]
        residual = residual - known.T @ (known @ residual)  # once more, for orthogonality in floating point
        direction: Tensor = residual / residual.norm().clamp(min=1e-300)
        self._directions[self._count] = direction
        self._count += 1
        return direction

    def settle(self) -> None:
        """Bring the distances of all rows up to date."""
        new = self._directions[self._settled : self._count]
        self.distance = (self.distance - (self.basis @ new.T).square().sum(1)).clamp(min=0)
        self._settled = self._count


def _choose_block(spans: Sequence[_Span], free: Tensor, count: int) -> list[int]:
    """Choose up to `count` rows, at least one, and extend the spans by them."""
    scores = _score([span.distance for span in spans]).masked_fill(~free, -math.inf)
    best, candidates = scores.topk(min(CANDIDATES + 1, int(free.sum())))
    outside = float(best[-1]) + len(spans) * math.log(SLACK) if len(best) > CANDIDATES else -math.inf
    candidates = candidates[:CANDIDATES]
    residuals = [span.residuals(candidates) for span in spans]
    picked: list[int] = []
    while len(picked) < min(count, len(candidates)):
        scores = _score([residual.square().sum(1) for residual in residuals])
        scores[picked] = -math.inf
        i = int(scores.argmax())
        if picked and float(scores[i]) < outside:
            break
        picked.append(i)
        for span, residual in zip(spans, residuals, strict=True):
            direction = span.extend(residual[i])
            residual -= torch.outer(residual @ direction, direction)
    rows: list[int] = candidates[picked].tolist()
    return rows


def _score(distances: Sequence[Tensor]) -> Tensor:
    """Sum of the logarithms of squared distances, (k,)."""
    return torch.stack([distance.clamp(min=1e-300).log() for distance in distances]).sum(0)
