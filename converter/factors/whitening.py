"""Second moments as metrics, with their square roots: S S^T = Sigma (SVD-LLM section 3.1), R^T R = G."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .eigen import symmetric_eigen
from .finite import all_finite

CONDITION_FLOOR = 1e-12  # smallest squared Cholesky pivot, relative to the mean, that is still trusted
SCALE_FLOOR = 1e-6  # smallest weight of an input feature, relative to the mean
ACTIVATION_POWER = 0.5  # ASVD's alpha
GRADIENT_DAMPING = 0.1  # added to G, relative to its mean eigenvalue


@dataclass(frozen=True)
class Whitener:
    """The metric of a linear's inputs: Sigma, and S with S S^T = Sigma where it is asked for.

    The factorization never inverts S, so none of the ways below needs damping. Cholesky; where Sigma is singular or
    nearly so (fewer tokens than features, constant or duplicated inputs), the symmetric eigendecomposition with
    negative rounding clamped to zero.

    Attributes:
        moment: Sigma (n, n) float64, symmetric positive semi-definite.
    """

    moment: Tensor

    @cached_property
    def matrix(self) -> Tensor:
        """S (n, n) float64."""
        lower: Tensor
        lower, failed = torch.linalg.cholesky_ex(self.moment)
        if int(failed) == 0 and bool(lower.diagonal().square().min() > CONDITION_FLOOR * self.moment.diagonal().mean()):
            return lower
        values, vectors = symmetric_eigen(self.moment)
        root: Tensor = vectors * values.clamp(min=0).sqrt()
        return root


def whiten(sigma: Tensor) -> Whitener:
    """The metric of a second moment; where that is zero (a dead input) the identity, which gives the plain SVD.

    Args:
        sigma: (n, n) float64, symmetric positive semi-definite.

    Raises:
        ValueError: sigma holds NaN or Inf.
    """
    if not all_finite(sigma):
        raise ValueError("second moment is not finite")
    if sigma.diagonal().mean() <= 0:
        return Whitener(torch.eye(len(sigma), dtype=sigma.dtype, device=sigma.device))
    return Whitener(sigma)


def diagonal_whitener(scale: Tensor) -> Whitener:
    """S = diag(scale) for one weight per input feature; the identity where all are zero.

    Args:
        scale: (n,) float64, not negative.

    Raises:
        ValueError: scale holds NaN or Inf.
    """
    if not bool(torch.isfinite(scale).all()):
        raise ValueError("scale is not finite")
    mean = scale.mean()
    scale = scale.clamp(min=SCALE_FLOOR * mean) if mean > 0 else torch.ones_like(scale)
    return Whitener(torch.diag(scale.square()))


def activation_scale(mean_abs: Tensor) -> Whitener:
    """ASVD's diag(mean |x| ^ 0.5).

    Args:
        mean_abs: mean |x| per input feature (n,) float64.
    """
    return diagonal_whitener(mean_abs**ACTIVATION_POWER)


@dataclass(frozen=True)
class OutputMetric:
    """The metric of a linear's outputs: G, and R with R^T R = G, upper triangular, where it is asked for.

    Attributes:
        moment: G (m, m) float64, symmetric positive definite.
    """

    moment: Tensor

    @cached_property
    def root(self) -> Tensor:
        """R (m, m) float64."""
        return _damped_cholesky(self.moment, 0.0).T.contiguous()


@dataclass(frozen=True)
class OutputRoot:
    """R alone, of an `OutputMetric` whose G is not needed any more: both may be larger than a block."""

    root: Tensor


def gradient_metric(gradient: Tensor, damping: float = GRADIENT_DAMPING) -> OutputMetric:
    """G + damping mean I. A few sequences leave G a poor estimate; the damping keeps directions it has not seen from
    looking free.

    Args:
        gradient: G (m, m) float64, symmetric positive semi-definite.
        damping: relative to the mean eigenvalue.

    Raises:
        ValueError: G holds NaN or Inf.
    """
    return OutputMetric(_damped(gradient, damping))


@dataclass(frozen=True)
class Regression:
    """Damped least squares on the inputs X' of the compressed stream.

    Attributes:
        lower: L (n, n) with L L^T = Sigma' + d I.
    """

    lower: Tensor

    def weight(self, moment: Tensor) -> Tensor:
        """Y X'^T (Sigma' + d I)^-1, (m, n) float64: gives Y from X', and nothing where the text says nothing.

        Args:
            moment: Y X'^T / T (m, n) float64.
        """
        half = torch.linalg.solve_triangular(self.lower, moment.T, upper=False)  # cholesky_solve copies L
        solved: Tensor = torch.linalg.solve_triangular(self.lower.T, half, upper=True)
        return solved.T


def regression(sigma: Tensor, damping: float) -> Regression:
    """Regression on inputs of a second moment.

    Args:
        sigma: Sigma' (n, n) float64, symmetric positive semi-definite.
        damping: d relative to the mean of Sigma's diagonal.

    Raises:
        ValueError: sigma holds NaN or Inf.
    """
    return Regression(_damped_cholesky(sigma, damping))


def _damped(moment: Tensor, damping: float) -> Tensor:
    """moment + d I, d = damping x mean; the identity in place of a moment of zero."""
    if not all_finite(moment):
        raise ValueError("second moment is not finite")
    mean = float(moment.diagonal().mean())
    if mean <= 0:
        return torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    damped = moment.clone()
    damped.diagonal().add_(damping * mean)
    return damped


def _damped_cholesky(moment: Tensor, damping: float) -> Tensor:
    """L (n, n) with L L^T = moment + d I; d grows while rounding makes that fail."""
    while True:
        lower: Tensor
        lower, failed = torch.linalg.cholesky_ex(_damped(moment, damping) if damping else moment)
        if int(failed) == 0:
            return lower
        damping = max(10 * damping, torch.finfo(moment.dtype).eps)
