"""Balancing leaves the product as it is and is the best of its kind; refitting U never makes the output worse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowrank_export.exporters.rounding.balancing import (
    balance_factors,
    random_rotation,
    refit_u,
    rotate_factors,
    seed_of,
)


def problem(m: int = 40, n: int = 30, rank: int = 12, tokens: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """U, V and Sigma of unequal sizes; few tokens leave Sigma singular."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scales = torch.logspace(1, -2, rank, dtype=torch.float64)
    inputs = random(tokens, n) * torch.logspace(1, -2, n, dtype=torch.float64)
    return random(m, rank) * scales, random(rank, n) / scales[:, None].sqrt(), inputs.T @ inputs / max(tokens, 1)


def noise(u: Tensor, v: Tensor, moment: Tensor) -> float:
    """What rounding does, up to a factor: see `balance_factors`."""
    metric = moment + moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
    return float((u.T @ u).trace() * (v @ metric @ v.T).trace())


@pytest.mark.parametrize("tokens", [200, 5, 0])
@pytest.mark.parametrize("shape", [(40, 30, 12), (12, 30, 12), (40, 12, 12)])
def test_product_is_unchanged(shape: tuple[int, int, int], tokens: int) -> None:
    u, v, moment = problem(*shape, tokens=tokens)
    balanced_u, balanced_v = balance_factors(u, v, moment, seed=1)
    assert balanced_u.shape == u.shape and balanced_v.shape == v.shape
    torch.testing.assert_close(balanced_u @ balanced_v, u @ v, rtol=0, atol=1e-9 * float((u @ v).abs().max()))


def test_factors_of_a_lower_rank_than_they_have_columns() -> None:
    u, v, moment = problem()
    u[:, 3], v[5] = u[:, 4], 0
    balanced_u, balanced_v = balance_factors(u, v, moment, seed=1)
    torch.testing.assert_close(balanced_u @ balanced_v, u @ v, rtol=0, atol=1e-9 * float((u @ v).abs().max()))


def test_no_other_balance_has_less_noise() -> None:
    u, v, moment = problem()
    best = noise(*balance_factors(u, v, moment, seed=1), moment)
    generator = torch.Generator().manual_seed(1)
    assert best < 0.9 * noise(u, v, moment)
    for step in (1e-3, 1e-2, 0.3):
        for _ in range(5):
            found_u, found_v = balance_factors(u, v, moment, seed=1)
            mix = torch.eye(12, dtype=torch.float64) + step * torch.randn(12, 12, generator=generator).double()
            assert best <= noise(found_u @ mix, torch.linalg.solve(mix, found_v), moment) * (1 + 1e-12)


def test_latent_features_are_alike() -> None:
    """No column of U, and no row of V, is much larger than the others: that is what the rotation is for."""
    u, v, moment = problem(rank=24)
    balanced_u, balanced_v = balance_factors(u, v, moment, seed=1)
    for sizes in (balanced_u.norm(dim=0), balanced_v.norm(dim=1)):
        assert float(sizes.max() / sizes.min()) < 4
    assert float(u.norm(dim=0).max() / u.norm(dim=0).min()) > 100


def test_rotation() -> None:
    q = random_rotation(20, seed=4)
    torch.testing.assert_close(q.T @ q, torch.eye(20, dtype=torch.float64))
    assert torch.equal(q, random_rotation(20, seed=4)) and not torch.equal(q, random_rotation(20, seed=5))


def loss(target: Tensor, found: Tensor, moment: Tensor) -> float:
    error = target - found
    return float((error @ moment * error).sum())


@pytest.mark.parametrize("tokens", [200, 5, 0])
def test_resolved_is_never_worse(tokens: int) -> None:
    u, v, moment = problem(tokens=tokens)
    rounded = v + 0.1 * v.abs().max() * torch.sign(torch.sin(1e4 * v))
    found, latent = refit_u(u, v, rounded, moment)
    before, after = loss(u @ v, u @ rounded, moment), loss(u @ v, found @ rounded, moment)
    assert after <= before and (after < 0.7 * before or tokens == 0)
    torch.testing.assert_close(latent, rounded @ moment @ rounded.T)


def test_resolved_against_least_squares() -> None:
    u, v, _ = problem()
    inputs = torch.randn(300, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    rounded = v + 0.05
    found, _ = refit_u(u, v, rounded, inputs.T @ inputs / 300)
    reference = torch.linalg.lstsq(inputs @ rounded.T, inputs @ (u @ v).T).solution.T
    torch.testing.assert_close(found, reference, rtol=0, atol=1e-3 * float(reference.abs().max()))


def test_exact_v_leaves_u_alone() -> None:
    u, v, moment = problem()
    found, _ = refit_u(u, v, v, moment)
    torch.testing.assert_close(found @ v, u @ v, rtol=0, atol=1e-8 * float((u @ v).abs().max()))


def test_rotation_alone_keeps_the_product_and_makes_features_alike() -> None:
    u, v, _ = problem(rank=24)
    turned_u, turned_v = rotate_factors(u.float(), v.float(), seed_of("model.layers.0.mlp.up_proj"))
    assert turned_u.dtype == turned_v.dtype == torch.float32
    torch.testing.assert_close(turned_u @ turned_v, (u @ v).float(), rtol=0, atol=1e-4 * float((u @ v).abs().max()))
    for before, after in ((u.T, turned_u.T), (v, turned_v)):
        spread = [float(features.norm(dim=1).max() / features.norm(dim=1).min()) for features in (before, after)]
        assert spread[1] < 0.2 * spread[0]


def test_seeds_differ_by_name_and_stay() -> None:
    assert seed_of("model.layers.0.mlp.up_proj") == 2823043480 != seed_of("model.layers.1.mlp.up_proj")
