"""Second moment -> whitener: S with S S^T = Sigma (SVD-LLM section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CONDITION_FLOOR = 1e-12  # smallest squared Cholesky pivot, relative to the mean, that is still trusted
SCALE_FLOOR = 1e-6  # smallest weight of an input feature, relative to the mean
ACTIVATION_POWER = 0.5  # ASVD's alpha
GRADIENT_DAMPING = 0.1  # added to G, relative to its mean eigenvalue


@dataclass(frozen=True)
class Whitener:
    """S (n, n) float64 and how it was obtained: "cholesky", "eigen", "diagonal" or, where Sigma is zero, "identity"."""

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


def diagonal_whitener(scale: Tensor) -> Whitener:
    """diag(scale) for one weight per input feature; the identity where all are zero.

    Args:
        scale: (n,) float64, not negative.

    Raises:
        ValueError: scale holds NaN or Inf.
    """
    if not bool(torch.isfinite(scale).all()):
        raise ValueError("scale is not finite")
    mean = scale.mean()
    if mean <= 0:
        return Whitener(torch.eye(len(scale), dtype=scale.dtype, device=scale.device), "identity")
    return Whitener(torch.diag(scale.clamp(min=SCALE_FLOOR * mean)), "diagonal")


def activation_scale(mean_abs: Tensor) -> Whitener:
    """ASVD's diag(mean |x| ^ 0.5).

    Args:
        mean_abs: mean |x| per input feature (n,) float64.
    """
    return diagonal_whitener(mean_abs**ACTIVATION_POWER)


SOLVED_ROWS = 1024  # of the regression, at once


def regression(cross: Tensor, sigma: Tensor, damping: float) -> Tensor:
    """(Gamma + d I) (Sigma' + d I)^-1, (n, n) float64, d = damping x mean of Sigma's diagonal: predicts X from X'.

    The least-squares prediction where the calibration text says something, and X' itself where it says nothing.

    Args:
        cross: Gamma = X X'^T / T (n, n) float64; the result takes its place.
        sigma: Sigma' (n, n) float64, symmetric positive semi-definite.
        damping: relative.
    """
    lower, added = _damped_cholesky(sigma, damping)
    cross.diagonal().add_(added)
    for start in range(0, len(cross), SOLVED_ROWS):  # in place: one such matrix may be a gigabyte
        rows = cross[start : start + SOLVED_ROWS]
        half = torch.linalg.solve_triangular(lower, rows.T, upper=False)
        rows.copy_(torch.linalg.solve_triangular(lower.T, half, upper=True).T)
    return cross


def gradient_root(gradient: Tensor, damping: float = GRADIENT_DAMPING) -> Tensor:
    """R (m, m) float64, upper triangular, R^T R = G + damping mean I: ||R dW S||_F^2 = tr(G dW Sigma dW^T).

    A few sequences leave G far from settled; the damping keeps directions it has not seen from looking free.
    """
    return _damped_cholesky(gradient, damping)[0].T.contiguous()


def _damped_cholesky(moment: Tensor, damping: float) -> tuple[Tensor, float]:
    """L (n, n) with L L^T = moment + d I, and d = damping x mean; d grows tenfold while rounding makes that fail."""
    if not bool(torch.isfinite(moment).all()):
        raise ValueError("second moment is not finite")
    mean = float(moment.diagonal().mean())
    if mean <= 0:
        return torch.eye(len(moment), dtype=moment.dtype, device=moment.device), 1.0
    while True:
        damped = moment.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if int(failed) == 0:
            return lower, damping * mean
        damping *= 10
