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


def factor(
    weight: Tensor, rank: int, whitener: Tensor | None = None, output_root: Tensor | None = None
) -> tuple[LowRankFactors, Tensor]:
    """The rank-r minimiser of ||R (W - U V^T) S||_F. With S S^T = Sigma and R^T R = G that is tr(G dW Sigma dW^T).

    With U_r an orthonormal basis of the leading left singular vectors of A = R W S, U = R^-1 U_r and V^T = U_r^T R W.
    This is the same product as R^-1 U_r s_r V_r^T S^-1, because U_r^T R W S = s_r V_r^T, but it needs no inverse of S,
    so a rank-deficient second moment is as good as any other. Without R this is SVD-LLM's truncation, and U is
    orthonormal.

    The basis comes from the eigenvectors of the smaller of A A^T and A^T A, in float64: an order of magnitude faster
    than the SVD of A. Directions whose singular value is below 1e-8 of the largest are not told apart, and carry less
    than 1e-16 of the energy.

    Args:
        weight: W (m, n), any float dtype; computed in float64.
        rank: r, at most min(m, n).
        whitener: S (n, n) float64; the identity (plain SVD) by default.
        output_root: R (m, m) float64, upper triangular and invertible; the identity by default.

    Returns:
        The factors and all squared singular values of R W S, descending, (min(m, n),) float64. The truncation loss is
        the sum of those from index r on.

    Raises:
        ValueError: the rank is out of range.
    """
    weight = weight.double()
    m, n = weight.shape
    if not 1 <= rank <= min(m, n):
        raise ValueError(f"rank {rank} is outside 1..{min(m, n)}")
    rooted = weight if output_root is None else output_root @ weight
    scaled = rooted if whitener is None else rooted @ whitener
    if m <= n:
        values, vectors = torch.linalg.eigh(scaled @ scaled.T)
        u = vectors[:, -rank:].flip(1).contiguous()
    else:
        values, vectors = torch.linalg.eigh(scaled.T @ scaled)
        u = torch.linalg.qr(scaled @ vectors[:, -rank:].flip(1)).Q
    v = u.T @ rooted
    if output_root is not None:
        u = torch.linalg.solve_triangular(output_root, u, upper=True)
    return LowRankFactors(u, v), values.flip(0).clamp(min=0)


def spectrum(weight: Tensor, whitener: Tensor | None = None, output_root: Tensor | None = None) -> Tensor:
    """The squared singular values that `factor` finds, descending (min(m, n),) float64, without the factors."""
    rooted = weight.double() if output_root is None else output_root @ weight.double()
    scaled = rooted if whitener is None else rooted @ whitener
    gram = scaled @ scaled.T if len(scaled) <= scaled.shape[1] else scaled.T @ scaled
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values.flip(0).clamp(min=0)


def truncation_loss(weight: Tensor, factors: LowRankFactors, sigma: Tensor) -> float:
    """tr((W - U V^T) Sigma (W - U V^T)^T): the mean squared output error per token."""
    residual = weight.double() - factors.product()
    return float(((residual @ sigma) * residual).sum().clamp(min=0))


def output_energy(weight: Tensor, sigma: Tensor) -> float:
    """tr(W Sigma W^T): the mean squared output per token, what a truncation loss is relative to."""
    weight = weight.double()
    return float(((weight @ sigma) * weight).sum())
