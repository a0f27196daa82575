"""How far a target moves from W X' towards W X, chosen per linear (SAES-SVD's adaptive suppression)."""

from __future__ import annotations

import torch
from torch import Tensor

from .eigen import symmetric_eigen

ALPHA_MIN, ALPHA_MAX = 0.2, 3 / 7
"""Guard rails of the public re-implementation; whether the paper has them is not known."""


def adaptive_alpha(
    base: Tensor, update: Tensor, rank: int, low: float = ALPHA_MIN, high: float = ALPHA_MAX
) -> tuple[float, float]:
    """The alpha in [low, high] at which base + alpha update loses the smallest share of its energy beside rank r.

    SAES-SVD (ICLR 2026) minimizes ||U V^T X' - W X'||^2 + a ||U V^T X' - W X||^2, which is the truncation of
    W ((1 - alpha) X' + alpha X) with alpha = a / (1 + a), and picks alpha by the retained energy. Exactly that takes a
    spectrum per candidate; with the leading subspaces P, Q of `base` frozen, the discarded share is a quotient of two
    quadratics in alpha,

        ||(I - P P^T)(base + alpha update)(I - Q Q^T)||^2 / ||base + alpha update||^2,

    whose stationary points are the roots of a third one.

    Args:
        base: W S (m, n) float64, S S^T = Sigma'.
        update: W Delta Sigma'^-1 S (m, n) float64.
        rank: r.
        low, high: what alpha is clipped to.

    Returns:
        Alpha, and the discarded share there.
    """
    rank = min(rank, *base.shape)
    p = _leading(base, rank)
    q = torch.linalg.qr(base.T @ p).Q
    outside = base - p @ (p.T @ base)
    update_outside = update - p @ (p.T @ update)
    update_outside = update_outside - (update_outside @ q) @ q.T
    discarded = _quadratic(outside, update_outside)
    whole = _quadratic(base, update)
    candidates = [low, high, *(root for root in _stationary(discarded, whole) if low < root < high)]
    shares = [_at(discarded, alpha) / max(_at(whole, alpha), 1e-300) for alpha in candidates]
    best = min(range(len(candidates)), key=shares.__getitem__)
    return candidates[best], shares[best]


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """Orthonormal basis (m, r) of the leading left singular vectors."""
    m, n = matrix.shape
    vectors = symmetric_eigen(matrix @ matrix.T if m <= n else matrix.T @ matrix)[1][:, -rank:]
    return vectors if m <= n else torch.linalg.qr(matrix @ vectors).Q


def _quadratic(constant: Tensor, slope: Tensor) -> tuple[float, float, float]:
    """Coefficients of ||constant + alpha slope||^2 in alpha, highest power first."""
    return float(slope.square().sum()), 2 * float((constant * slope).sum()), float(constant.square().sum())


def _at(quadratic: tuple[float, float, float], alpha: float) -> float:
    a, b, c = quadratic
    return (a * alpha + b) * alpha + c


def _stationary(upper: tuple[float, float, float], lower: tuple[float, float, float]) -> list[float]:
    """Real roots of the derivative of upper(alpha) / lower(alpha)."""
    (a, b, c), (d, e, f) = upper, lower
    square, linear, constant = a * e - b * d, 2 * (a * f - c * d), b * f - c * e
    if square == 0:
        return [-constant / linear] if linear else []
    under = linear * linear - 4 * square * constant
    if under < 0:
        return []
    # the larger root first, the smaller from the product of both: no cancellation
    far = -(linear + (1 if linear >= 0 else -1) * under**0.5) / 2
    return [far / square, constant / far] if far else [0.0]
