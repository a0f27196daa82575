"""Matrix products of which half need not be computed: a factor is triangular, or the result is known to be symmetric.

Panels of rows or columns; nothing but rounding differs from the plain product.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..statistics.moments import mirror_upper

PANEL = 512  # rows or columns per product: large enough for the matmul to run at full speed


def _panels(n: int) -> Iterator[slice]:
    return (slice(start, min(start + PANEL, n)) for start in range(0, n, PANEL))


def upper_times(upper: Tensor, b: Tensor) -> Tensor:
    """R B (m, k) for an upper triangular R (m, m) and B (m, k): half the work."""
    product = b.new_empty(len(upper), b.shape[1])
    for rows in _panels(len(upper)):
        torch.mm(upper[rows, rows.start :], b[rows.start :], out=product[rows])
    return product


def symmetric_product(a: Tensor, b: Tensor) -> Tensor:
    """A^T B (n, n) of A (k, n) and B (k, n), known to be symmetric: little more than half the work."""
    n = a.shape[1]
    product = a.new_empty(n, n)
    for rows in _panels(n):
        torch.mm(a[:, rows].T, b[:, rows.start :], out=product[rows, rows.start :])
    mirror_upper(product)
    return product


def outer_form(a: Tensor, sigma: Tensor) -> Tensor:
    """A Sigma A^T (m, m) of A (m, n) and a symmetric Sigma (n, n): m n^2 + 2 m^2 n operations instead of
    2 m n^2 + 2 m^2 n, and A Sigma is not in memory.

    With T the strict upper triangle of Sigma and half its diagonal, Sigma = T + T^T, so this is A T A^T and its
    transpose.
    """
    half = a.new_zeros(len(a), len(a))
    for columns in _panels(len(sigma)):
        half.addmm_(_half_seen(a, sigma, columns), a[:, columns].T)
    return half + half.T


def energy(a: Tensor, sigma: Tensor) -> float:
    """tr(A Sigma A^T) of A (m, n) and a symmetric Sigma (n, n): half the work, and A Sigma is not in memory."""
    return 2 * sum(float((_half_seen(a, sigma, columns) * a[:, columns]).sum()) for columns in _panels(len(sigma)))


def _half_seen(a: Tensor, sigma: Tensor, columns: slice) -> Tensor:
    """Some columns of A T, see `outer_form`."""
    corner = sigma[columns, columns].triu()
    corner.diagonal().mul_(0.5)
    seen = a[:, columns] @ corner
    return seen.addmm_(a[:, : columns.start], sigma[: columns.start, columns])
