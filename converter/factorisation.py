"""Metric + rank -> low-rank factors, and the loss they leave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRankFactors:
    """W ~ U V^T: u is (m, r), v is V^T (r, n), both float64."""

    u: Tensor
    v: Tensor

    @property
    def rank(self) -> int:
        """r."""
        return self.u.shape[1]

    def product(self) -> Tensor:
        """U V^T (m, n)."""
        return self.u @ self.v


def factor(weight: Tensor, rank: int, whitener: Tensor | None = None) -> tuple[LowRankFactors, Tensor]:
    """The rank-r minimiser of ||(W - U V^T) S||_F, which is the minimiser of ||(W - U V^T) X||_F for S S^T = X X^T.

    With U_r an orthonormal basis of the leading left singular vectors of A = W S, U = U_r and V^T = U_r^T W. This is
    the same product as SVD-LLM's U_r s_r V_r^T S^-1 (algorithms, section 1), because U_r^T W S = s_r V_r^T, but it
    needs no inverse of S, so a rank-deficient second moment is as good as any other; U is orthonormal.

    The basis comes from the eigenvectors of the smaller of A A^T and A^T A, in float64: an order of magnitude faster
    than the SVD of A. Directions whose singular value is below 1e-8 of the largest are not told apart, and carry less
    than 1e-16 of the energy.

    Args:
        weight: W (m, n), any float dtype; computed in float64.
        rank: r, at most min(m, n).
        whitener: S (n, n) float64; the identity (plain SVD) by default.

    Returns:
        The factors and all squared singular values of W S, descending, (min(m, n),) float64. The truncation loss is
        the sum of those from index r on.

    Raises:
        ValueError: the rank is out of range.
    """
    weight = weight.double()
    m, n = weight.shape
    if not 1 <= rank <= min(m, n):
        raise ValueError(f"rank {rank} is outside 1..{min(m, n)}")
    scaled = weight if whitener is None else weight @ whitener
    if m <= n:
        values, vectors = torch.linalg.eigh(scaled @ scaled.T)
        u = vectors[:, -rank:].flip(1)
    else:
        values, vectors = torch.linalg.eigh(scaled.T @ scaled)
        u = torch.linalg.qr(scaled @ vectors[:, -rank:].flip(1)).Q
    return LowRankFactors(u.contiguous(), u.T @ weight), values.flip(0).clamp(min=0)


def truncation_loss(weight: Tensor, factors: LowRankFactors, sigma: Tensor) -> float:
    """tr((W - U V^T) Sigma (W - U V^T)^T): the mean squared output error per token."""
    residual = weight.double() - factors.product()
    return float(((residual @ sigma) * residual).sum().clamp(min=0))


def output_energy(weight: Tensor, sigma: Tensor) -> float:
    """tr(W Sigma W^T): the mean squared output per token, what a truncation loss is relative to."""
    weight = weight.double()
    return float(((weight @ sigma) * weight).sum())
