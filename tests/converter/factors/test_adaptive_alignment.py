"""SAES-SVD's alpha: the closed form against a grid, against the exact spectrum, at its guard rails."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_export.converter.factors.adaptive_alignment import ALPHA_MAX, ALPHA_MIN, adaptive_alpha


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frozen_share(base: torch.Tensor, update: torch.Tensor, rank: int, alpha: float) -> float:
    """The discarded share with base's leading subspaces frozen, written out."""
    u, _, vt = torch.linalg.svd(base)
    left = torch.eye(len(base), dtype=torch.float64) - u[:, :rank] @ u[:, :rank].T
    right = torch.eye(base.shape[1], dtype=torch.float64) - vt[:rank].T @ vt[:rank]
    target = base + alpha * update
    return float((left @ target @ right).square().sum() / target.square().sum())


@settings(max_examples=40, deadline=None)
@given(m=st.integers(2, 12), n=st.integers(2, 12), seed=st.integers(0, 999), data=st.data())
def test_no_alpha_of_a_fine_grid_discards_less(m: int, n: int, seed: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(m, n)))
    base, update = random(m, n, seed=seed), random(m, n, seed=seed + 1)
    alpha, share = adaptive_alpha(base, update, rank, 0.0, 2.0)
    assert 0.0 <= alpha <= 2.0
    assert share == pytest.approx(frozen_share(base, update, rank, alpha), abs=1e-9)
    assert all(share <= frozen_share(base, update, rank, other / 50) + 1e-9 for other in range(101))


def test_moving_towards_the_leading_subspace_goes_to_the_upper_rail() -> None:
    """Drift along the leading directions only strengthens them; against them it weakens them."""
    base = random(8, 10)
    u, s, vt = torch.linalg.svd(base, full_matrices=False)
    leading = (u[:, :3] * s[:3]) @ vt[:3]
    assert adaptive_alpha(base, leading, 3)[0] == ALPHA_MAX
    assert adaptive_alpha(base, -leading, 3)[0] == ALPHA_MIN


def test_frozen_subspaces_are_near_the_exact_spectrum_for_small_updates() -> None:
    base = random(8, 10, seed=3) * torch.tensor([3.0, 3.0, 3.0] + [1.0] * 7)
    update = 0.05 * random(8, 10, seed=4)
    alpha, share = adaptive_alpha(base, update, 3, 0.0, 1.0)
    energies = torch.linalg.svdvals(base + alpha * update).square()
    assert share == pytest.approx(float(energies[3:].sum() / energies.sum()), rel=0.02)


def test_nothing_there_is_not_an_error() -> None:
    zero = torch.zeros(4, 4, dtype=torch.float64)
    alpha, _ = adaptive_alpha(zero, zero, 2)
    assert ALPHA_MIN <= alpha <= ALPHA_MAX
    assert adaptive_alpha(random(4, 4), zero, 2)[0] == ALPHA_MIN
