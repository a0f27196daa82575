"""Closed-form updates of the factors after truncation: adaComp (AdaSVD section 3.1) and SVD-LLM's update of U."""

from __future__ import annotations

from torch import Tensor

from ..methods import Compensation
from .eigen import symmetric_pseudoinverse
from .factorization import LowRankFactors

CUTOFF = 1e-7  # singular values below this fraction of the largest are dropped by the pseudoinverse


def update_u(weight: Tensor, factors: LowRankFactors, sigma: Tensor, cutoff: float = CUTOFF) -> LowRankFactors:
    """U <- (A^+ B)^T with A = X^T V, B = (W X)^T (AdaSVD eq. 8 to 12), from the second moment of X alone.

    A^T A = V^T Sigma V and A^T B = V^T Sigma W^T, so A^+ B = (V^T Sigma V)^+ V^T Sigma W^T. The eigenvalues of
    V^T Sigma V are the squared singular values of A, hence the squared cut-off.

    Args:
        weight: W (m, n) float64.
        factors: the current factors.
        sigma: second moment (n, n) float64 of the activations to fit.
        cutoff: relative cut-off on the singular values of A.
    """
    projected = factors.v @ sigma  # (r, n)
    normal = projected @ factors.v.T  # (r, r)
    inverse = symmetric_pseudoinverse(normal, cutoff**2)
    return LowRankFactors(weight @ projected.T @ inverse, factors.v)


def update_v(weight: Tensor, factors: LowRankFactors, cutoff: float = CUTOFF) -> LowRankFactors:
    """V^T <- U^+ W (AdaSVD eq. 13): the best V^T for a fixed U, whatever the activations."""
    u = factors.u
    inverse = symmetric_pseudoinverse(u.T @ u, cutoff**2)
    return LowRankFactors(u, inverse @ (u.T @ weight))


def adacomp(weight: Tensor, factors: LowRankFactors, sigma: Tensor, iterations: int) -> LowRankFactors:
    """`iterations` times one U and one V^T update (AdaSVD eq. 16) on activations with second moment `sigma`.

    The loss tr((W - U V^T) Sigma (W - U V^T)^T) never rises: each update minimizes it over one factor.
    """
    weight = weight.double()
    for _ in range(iterations):
        factors = update_v(weight, update_u(weight, factors, sigma), CUTOFF)
    return factors


def compensate(
    kind: Compensation, weight: Tensor, factors: LowRankFactors, sigma: Tensor, iterations: int
) -> LowRankFactors:
    """Fit truncated factors again, as the method says.

    Args:
        kind: "adacomp", or "update-u": one update of U with V^T as the truncation left it (SVD-LLM's second step).
        weight: W (m, n), any float dtype, or the weight whose output is the target.
        factors: after truncation.
        sigma: second moment (n, n) float64 of the activations to fit.
        iterations: of adaComp.
    """
    if kind == "update-u":
        return update_u(weight.double(), factors, sigma)
    return adacomp(weight, factors, sigma, iterations)
