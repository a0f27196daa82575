"""Metric + rank -> low-rank factors, and the loss they leave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .eigen import symmetric_eigen, symmetric_values
from .products import energy, outer_form, symmetric_product, upper_times
from .whitening import OutputMetric, OutputRoot, Whitener


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
    weight: Tensor, rank: int, inputs: Whitener | None = None, outputs: OutputMetric | OutputRoot | None = None
) -> tuple[LowRankFactors, Tensor]:
    """The rank-r minimizer of ||R (W - U V^T) S||_F. With S S^T = Sigma and R^T R = G that is tr(G dW Sigma dW^T).

    With U_r an orthonormal basis of the leading left singular vectors of A = R W S, U = R^-1 U_r and V^T = U_r^T R W.
    This is the same product as R^-1 U_r s_r V_r^T S^-1, because U_r^T R W S = s_r V_r^T, but it needs no inverse of S,
    so a rank-deficient second moment is as good as any other. Without R this is SVD-LLM's truncation, and U is
    orthonormal.

    The basis comes from the eigenvectors of the smaller of A A^T and A^T A, in float64: an order of magnitude faster
    than the SVD of A, and A A^T = R W Sigma W^T R^T needs no S. Directions whose singular value is below 1e-8 of the
    largest are not told apart, and carry less than 1e-16 of the energy.

    Args:
        weight: W (m, n), any float dtype; computed in float64.
        rank: r, at most min(m, n).
        inputs: Sigma, S; the identity (plain SVD) by default.
        outputs: R; the identity by default.

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
    rooted = weight if outputs is None else upper_times(outputs.root, weight)
    gram = _outer_gram(rooted, inputs) if m <= n else _inner_gram(symmetric_product(rooted, rooted), inputs)
    values, vectors = symmetric_eigen(gram)
    u = vectors[:, -rank:].flip(1).contiguous()
    if m > n:
        u = torch.linalg.qr(rooted @ (u if inputs is None else inputs.matrix @ u)).Q
    v = u.T @ rooted
    if outputs is not None:
        u = torch.linalg.solve_triangular(outputs.root, u, upper=True)
    return LowRankFactors(u, v), values.flip(0).clamp(min=0)


def spectrum(weight: Tensor, inputs: Whitener | None = None, outputs: OutputMetric | None = None) -> Tensor:
    """The squared singular values that `factor` finds, descending (min(m, n),) float64, without the factors.

    Only the root of the smaller side is taken: A^T A = S^T W^T G W S needs no R.
    """
    weight = weight.double()
    if weight.shape[0] <= weight.shape[1]:
        gram = _outer_gram(weight if outputs is None else upper_times(outputs.root, weight), inputs)
    else:
        middle = symmetric_product(weight, weight) if outputs is None else outer_form(weight.T, outputs.moment)
        gram = _inner_gram(middle, inputs)
    return symmetric_values(gram).flip(0).clamp(min=0)


def _outer_gram(rooted: Tensor, inputs: Whitener | None) -> Tensor:
    """A A^T (m, m) from R W."""
    return symmetric_product(rooted.T, rooted.T) if inputs is None else outer_form(rooted, inputs.moment)


def _inner_gram(middle: Tensor, inputs: Whitener | None) -> Tensor:
    """A^T A (n, n) from W^T G W."""
    return middle if inputs is None else symmetric_product(inputs.matrix, middle @ inputs.matrix)


def balanced(factors: LowRankFactors) -> LowRankFactors:
    """The same product with |u_i| = |v_i| for every latent i, so that neither
    leaves the range of a narrow storage type and one step size of a refinement suits both."""
    u, v = factors.u.norm(dim=0), factors.v.norm(dim=1)
    scale = torch.where((u > 0) & (v > 0), (v / u.clamp(min=1e-300)).sqrt(), torch.ones_like(u))
    return LowRankFactors(factors.u * scale, factors.v / scale[:, None])


def truncation_loss(weight: Tensor, factors: LowRankFactors, sigma: Tensor) -> float:
    """tr((W - U V^T) Sigma (W - U V^T)^T): the mean squared output error per token."""
    return max(0.0, energy(torch.addmm(weight.double(), factors.u, factors.v, alpha=-1), sigma))


def output_energy(weight: Tensor, sigma: Tensor) -> float:
    """tr(W Sigma W^T): the mean squared output per token, what a truncation loss is relative to."""
    return energy(weight.double(), sigma)
