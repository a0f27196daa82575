"""Second moment -> whitener: S with S S^T = Sigma (SVD-LLM section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CONDITION_FLOOR = 1e-12  # smallest squared Cholesky pivot, relative to the mean, that is still trusted
DAMPING_FLOOR = 1e-9  # eigenvalues below this fraction of their mean carry no direction


@dataclass(frozen=True)
class Whitener:
    """S (n, n) float64 and how it was obtained: "cholesky", "eigen" or, where Sigma is zero, "identity"."""

    matrix: Tensor
    how: str


def whiten(sigma: Tensor) -> Whitener:
    """A square root of the second moment.

    The ladder: Cholesky; where Sigma is singular or nearly so (fewer tokens than features, constant or duplicated
    inputs), the symmetric eigendecomposition with negative rounding clamped to zero; where Sigma is zero (a dead
    input), the identity, so that the truncation falls back to the plain SVD. The factorisation never inverts S, so
    none of the rungs needs damping.

    Args:
        sigma: (n, n) float64, symmetric positive semi-definite.

    Raises:
        ValueError: sigma holds NaN or Inf.
    """
    if not bool(torch.isfinite(sigma).all()):
        raise ValueError("second moment is not finite")
    mean = sigma.diagonal().mean()
    if mean <= 0:
        return Whitener(torch.eye(len(sigma), dtype=sigma.dtype, device=sigma.device), "identity")
    lower, failed = torch.linalg.cholesky_ex(sigma)
    if int(failed) == 0 and bool(lower.diagonal().square().min() > CONDITION_FLOOR * mean):
        return Whitener(lower, "cholesky")
    values, vectors = torch.linalg.eigh(sigma)
    return Whitener(vectors * values.clamp(min=0).sqrt(), "eigen")


def damped_inverse(sigma: Tensor, damping: float = DAMPING_FLOOR) -> Tensor:
    """Inverse of a second moment with eigenvalues clamped to `damping` times their mean; (n, n) float64."""
    values, vectors = torch.linalg.eigh(sigma)
    floor = (damping * values.mean()).clamp(min=torch.finfo(sigma.dtype).tiny)
    inverse: Tensor = (vectors / values.clamp(min=floor)) @ vectors.T
    return inverse
