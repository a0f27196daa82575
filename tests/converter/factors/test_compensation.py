"""adaComp: monotone, equal to the pseudoinverse on raw activations, finite where the naive inverse is not."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_export.converter.factors.compensation import adacomp, compensate, update_u, update_v
from lowrank_export.converter.factors.factorization import LowRankFactors, factor, truncation_loss
from lowrank_export.converter.factors.whitening import whiten


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def start(m: int, n: int, rank: int, seed: int) -> tuple[torch.Tensor, LowRankFactors, torch.Tensor]:
    """Weight, factors fitted on one set of activations, and another set (tokens, n)."""
    weight = random(m, n, seed=seed)
    fitted = random(3 * n, n, seed=seed + 1)
    other = random(2 * n, n, seed=seed + 2) * torch.linspace(0.2, 3, n)
    return weight, factor(weight, rank, whiten(fitted.T @ fitted))[0], other


def test_u_update_is_the_pseudoinverse_of_the_activations() -> None:
    weight, factors, x = start(9, 12, 4, 0)
    a, b = x @ factors.v.T, x @ weight.T  # eq. 8: A = X^T V, B = (W X)^T
    expected = (torch.linalg.pinv(a) @ b).T
    torch.testing.assert_close(update_u(weight, factors, x.T @ x).u, expected, rtol=1e-8, atol=1e-8)


def test_v_update_is_the_pseudoinverse_of_u() -> None:
    weight, factors, _ = start(9, 12, 4, 3)
    torch.testing.assert_close(update_v(weight, factors).v, torch.linalg.pinv(factors.u) @ weight)


@settings(max_examples=30, deadline=None)
@given(m=st.integers(3, 20), n=st.integers(3, 20), seed=st.integers(0, 999), data=st.data())
def test_loss_never_rises_on_the_data_it_is_given(m: int, n: int, seed: int, data: st.DataObject) -> None:
    weight, factors, x = start(m, n, data.draw(st.integers(1, min(m, n))), seed)
    sigma = x.T @ x / len(x)
    scale = truncation_loss(weight, LowRankFactors(factors.u * 0, factors.v), sigma)
    losses = [truncation_loss(weight, factors, sigma)]
    for _ in range(4):
        factors = adacomp(weight, factors, sigma, 1)
        losses.append(truncation_loss(weight, factors, sigma))
    assert all(after <= before + 1e-9 * scale for before, after in pairwise(losses))


def test_cannot_improve_on_the_data_that_whitening_saw() -> None:
    weight = random(10, 14, seed=5)
    x = random(60, 14, seed=6)
    sigma = x.T @ x
    factors, _ = factor(weight, 5, whiten(sigma))
    best = truncation_loss(weight, factors, sigma)
    assert truncation_loss(weight, adacomp(weight, factors, sigma, 5), sigma) == pytest.approx(best, rel=1e-9)


def test_rank_deficient_activations_give_finite_factors_where_the_naive_inverse_fails() -> None:
    weight, factors, x = start(9, 12, 6, 7)
    x = x[:3]  # three tokens: A = X^T V has rank 3 < 6
    a = x @ factors.v.T
    naive = torch.linalg.inv(a.T @ a) @ a.T @ (x @ weight.T)  # eq. 6
    updated = adacomp(weight, factors, x.T @ x, 3)
    assert torch.isfinite(updated.u).all() and torch.isfinite(updated.v).all()
    assert truncation_loss(weight, updated, x.T @ x) < 1e-12 * float(weight.square().sum())
    reference = x @ weight.T
    assert not torch.isfinite(naive).all() or float((a @ naive - reference).norm()) > 1e-6 * float(reference.norm())


def test_zero_iterations_change_nothing() -> None:
    weight, factors, x = start(6, 6, 2, 9)
    assert adacomp(weight, factors, x.T @ x, 0) is factors


@settings(max_examples=20, deadline=None)
@given(m=st.integers(3, 20), n=st.integers(3, 20), seed=st.integers(0, 999), data=st.data())
def test_update_of_u_never_raises_the_loss_and_settles_at_once(m: int, n: int, seed: int, data: st.DataObject) -> None:
    weight, factors, x = start(m, n, data.draw(st.integers(1, min(m, n))), seed)
    sigma = x.T @ x / len(x)
    once = compensate("update-u", weight, factors, sigma, 0)
    twice = compensate("update-u", weight, once, sigma, 0)
    scale = truncation_loss(weight, LowRankFactors(factors.u * 0, factors.v), sigma)
    assert truncation_loss(weight, once, sigma) <= truncation_loss(weight, factors, sigma) + 1e-9 * scale
    assert torch.equal(once.v, factors.v)
    torch.testing.assert_close(twice.product(), once.product(), rtol=1e-6, atol=1e-6)


def test_update_of_u_changes_nothing_on_the_data_that_whitening_saw() -> None:
    weight = random(10, 14, seed=5)
    x = random(60, 14, seed=6)
    factors, _ = factor(weight, 5, whiten(x.T @ x))
    updated = compensate("update-u", weight, factors, x.T @ x, 0)
    torch.testing.assert_close(updated.product(), factors.product())
