"""Truncation under a metric: optimal, exact at full rank, indifferent to how singular the moment is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_export.converter.factorisation import factor, output_energy, truncation_loss
from lowrank_export.converter.whitening import regression, whiten


def problem(m: int, n: int, tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A random weight (m, n) and correlated activations (tokens, n), float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(m, n, generator=generator, dtype=torch.float64)
    mixing = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return weight, torch.randn(tokens, n, generator=generator, dtype=torch.float64) @ mixing


def svd_llm_reference(weight: torch.Tensor, sigma: torch.Tensor, rank: int) -> torch.Tensor:
    """SVD-LLM as printed: U_r s_r V_r^T S^-1, with the inverse."""
    s = torch.linalg.cholesky(sigma)
    u, values, vt = torch.linalg.svd(weight @ s, full_matrices=False)
    return (u[:, :rank] * values[:rank]) @ vt[:rank] @ torch.linalg.inv(s)


@settings(max_examples=40, deadline=None)
@given(m=st.integers(2, 24), n=st.integers(2, 24), seed=st.integers(0, 999), data=st.data())
def test_is_the_printed_svd_llm_product(m: int, n: int, seed: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(m, n)))
    weight, x = problem(m, n, 4 * n, seed)
    sigma = x.T @ x / len(x)
    factors, _ = factor(weight, rank, whiten(sigma).matrix)
    expected = svd_llm_reference(weight, sigma, rank)
    torch.testing.assert_close(factors.product(), expected, rtol=1e-6, atol=1e-6 * float(weight.norm()))


@settings(max_examples=40, deadline=None)
@given(m=st.integers(2, 24), n=st.integers(2, 24), seed=st.integers(0, 999), data=st.data())
def test_loss_from_data_is_the_discarded_energy(m: int, n: int, seed: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(m, n)))
    weight, x = problem(m, n, 3 * n, seed)
    sigma = x.T @ x / len(x)
    factors, energies = factor(weight, rank, whiten(sigma).matrix)
    from_data = float(((weight - factors.product()) @ x.T).square().sum() / len(x))
    scale = output_energy(weight, sigma)
    assert from_data == pytest.approx(float(energies[rank:].sum()), rel=1e-4, abs=1e-10 * scale)
    assert truncation_loss(weight, factors, sigma) == pytest.approx(from_data, rel=1e-4, abs=1e-10 * scale)


def test_no_random_candidate_and_no_alternation_is_better() -> None:
    weight, x = problem(20, 14, 60, 1)
    sigma, rank = x.T @ x / len(x), 5
    factors, _ = factor(weight, rank, whiten(sigma).matrix)
    best = truncation_loss(weight, factors, sigma)
    generator = torch.Generator().manual_seed(2)
    for _ in range(50):
        v = torch.randn(rank, 14, generator=generator, dtype=torch.float64)
        for _ in range(5):  # alternating least squares on the same data
            u = weight @ sigma @ v.T @ torch.linalg.inv(v @ sigma @ v.T)
            v = torch.linalg.pinv(u) @ weight
            candidate = type(factors)(u, v)
            assert truncation_loss(weight, candidate, sigma) >= best * (1 - 1e-9)


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (10, 10)])
def test_full_rank_is_exact_and_u_is_orthonormal(shape: tuple[int, int]) -> None:
    weight, x = problem(*shape, 50, 3)
    factors, _ = factor(weight, min(shape), whiten(x.T @ x).matrix)
    torch.testing.assert_close(factors.product(), weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(factors.u.T @ factors.u, torch.eye(min(shape), dtype=torch.float64))


HOSTILE = {
    "fewer tokens than features": lambda x: x[:3],
    "duplicated channels": lambda x: torch.cat([x[:, :4], x[:, :4], x[:, :2]], dim=1),
    "dead channels": lambda x: x * torch.tensor([1.0, 0, 1, 0, 1, 0, 1, 0, 1, 0]),
    "constant": lambda x: torch.ones_like(x),
    "zero": lambda x: torch.zeros_like(x),
    "enormous": lambda x: x * 1e18,
    "one enormous channel": lambda x: x * torch.tensor([1e12] + [1.0] * 9),
    "tiny": lambda x: x * 1e-18,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("m", [6, 16])
def test_hostile_activations_give_finite_optimal_factors(name: str, m: int) -> None:
    weight, x = problem(m, 10, 40, 4)
    x = HOSTILE[name](x)
    sigma = x.T @ x / len(x)
    whitener = whiten(sigma)
    factors, energies = factor(weight, 3, whitener.matrix)
    assert torch.isfinite(factors.u).all() and torch.isfinite(factors.v).all()
    if whitener.how != "identity":
        scale = output_energy(weight, sigma)
        assert truncation_loss(weight, factors, sigma) == pytest.approx(
            float(energies[3:].sum()), rel=1e-4, abs=1e-9 * scale
        )


def test_whitener_is_a_square_root_and_says_how() -> None:
    _, x = problem(1, 10, 40, 5)
    sigma = x.T @ x
    assert whiten(sigma).how == "cholesky"
    singular = x[:4].T @ x[:4]
    assert whiten(singular).how == "eigen"
    for moment in (sigma, singular):
        s = whiten(moment).matrix
        torch.testing.assert_close(s @ s.T, moment, rtol=1e-8, atol=1e-8 * float(moment.norm()))
    assert whiten(torch.zeros(3, 3, dtype=torch.float64)).how == "identity"
    with pytest.raises(ValueError, match="not finite"):
        whiten(torch.full((2, 2), float("nan"), dtype=torch.float64))


def test_regression_is_least_squares_where_there_is_a_solution() -> None:
    _, x = problem(1, 8, 60, 6)
    _, y = problem(1, 8, 60, 7)
    found = regression(x.T @ y, y.T @ y, 1e-12)
    expected = torch.linalg.lstsq(y, x).solution.T
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    unseen = torch.eye(8, dtype=torch.float64)[0]
    x[:, 0], y[:, 0] = 0, 0
    torch.testing.assert_close(regression(x.T @ y, y.T @ y, 1e-6) @ unseen, unseen)  # no data: X' stands for X


@pytest.mark.parametrize("rank", [0, 9])
def test_rank_out_of_range(rank: int) -> None:
    with pytest.raises(ValueError, match=r"outside 1\.\.8"):
        factor(torch.ones(8, 12), rank)
