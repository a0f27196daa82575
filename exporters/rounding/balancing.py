"""Factors before they are rounded: which of the equal products U V rounds best, and U refitted to a V that was rounded.

A product U V (here V is r x n, as stored) is the same for every invertible R in U R and R^-1 V. Rounding is not.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

RIDGE = 1e-6  # of the trace of H, in the refit of U: above the noise of a moment that was summed in float32


def balance_factors(u: Tensor, v: Tensor, moment: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The same product in factors whose rounding does least harm.

    Rounding to blocks adds noise in proportion to the size of what is rounded. An error of V reaches the output
    through U, one of U is met by z = V x. Summed over both, with s = mean diag Sigma and noise e per unit:

        e / r tr(U^T U) tr(V (s I + Sigma) V^T)

    where the latent features are mixed well enough to be alike. The least of it over all R is at balance, where both
    matrices are the same: with the singular values t of U V (s I + Sigma)^1/2 it is e / r (sum t)^2, never more than
    e sum t^2, the noise of a dense W and that of U alone. A random rotation does the mixing.

    Args:
        u: (m, r).
        v: (r, n).
        moment: Sigma (n, n) of the inputs.
        seed: of the rotation.

    Returns:
        U R (m, r) and R^-1 V (r, n), float64.
    """
    metric = moment.double().clone()
    mean = metric.diagonal().mean()
    metric.diagonal().add_(mean if mean > 0 else 1.0)
    root = torch.linalg.cholesky(metric)  # metric = root root^T
    q_left, left = torch.linalg.qr(u.double())
    q_right, right = torch.linalg.qr((v.double() @ root).T)
    a, t, bt = torch.linalg.svd(left @ right.T, full_matrices=False)
    rotation = random_rotation(len(t), seed).to(t.device)
    balanced_u = q_left @ (a * t.sqrt())
    balanced_v = torch.linalg.solve_triangular(root, (t.sqrt()[:, None] * bt) @ q_right.T, upper=False, left=False)
    return balanced_u @ rotation, rotation.T @ balanced_v


def rotate_factors(u: Tensor, v: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """The same product in factors whose latent features are alike: none outweighs the others in a block of columns.

    Without the moment of the inputs, which `balance_factors` needs, this is what can be done: factors come in the order
    of their singular values, and a block of codes has one scale.

    Args:
        u: (m, r).
        v: (r, n).
        seed: of the rotation.

    Returns:
        U R (m, r) and R^T V (r, n), in the factors' dtype.
    """
    rotation = random_rotation(u.shape[1], seed).to(u.device)
    return (u.double() @ rotation).to(u.dtype), (rotation.T @ v.double()).to(v.dtype)


def seed_of(name: str) -> int:
    """The same for the same linear, whatever else is rounded."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def random_rotation(size: int, seed: int) -> Tensor:
    """A random orthogonal matrix (size, size), float64; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    signed: Tensor = q * r.diagonal().sign()
    return signed


def refit_u(u: Tensor, v: Tensor, rounded: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
    """U for a V that was rounded to V', in closed form, and the moment that it will meet.

    The minimum of tr((U V - X V') Sigma (U V - X V')^T) + ridge |X - U|^2 over X: with the ridge, which a singular
    moment needs, the first term is no larger than at X = U.

    Args:
        u: (m, r).
        v: (r, n).
        rounded: V' (r, n).
        moment: Sigma (n, n).

    Returns:
        X (m, r) and V' Sigma V'^T (r, r), float64.
    """
    u, seen = u.double(), moment.double() @ rounded.double().T
    latent = rounded.double() @ seen
    latent = (latent + latent.T) / 2
    trace = float(latent.diagonal().sum())
    ridge = RIDGE * trace if trace > 0 else 1.0
    damped = latent.clone()
    damped.diagonal().add_(ridge)
    target = u @ (v.double() @ seen) + ridge * u
    return torch.cholesky_solve(target.T, torch.linalg.cholesky(damped)).T, latent
