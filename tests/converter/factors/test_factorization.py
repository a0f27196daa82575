"""Truncation under a metric: optimal, exact at full rank, indifferent to how singular the moment is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_export.converter.factors.factorization import (
    LowRankFactors,
    balanced,
    factor,
    output_energy,
    spectrum,
    truncation_loss,
)
from lowrank_export.converter.factors.whitening import gradient_metric, regression, whiten


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
    factors, _ = factor(weight, rank, whiten(sigma))
    expected = svd_llm_reference(weight, sigma, rank)
    torch.testing.assert_close(factors.product(), expected, rtol=1e-6, atol=1e-6 * float(weight.norm()))


@settings(max_examples=40, deadline=None)
@given(m=st.integers(2, 24), n=st.integers(2, 24), seed=st.integers(0, 999), data=st.data())
def test_loss_from_data_is_the_discarded_energy(m: int, n: int, seed: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(m, n)))
    weight, x = problem(m, n, 3 * n, seed)
    sigma = x.T @ x / len(x)
    factors, energies = factor(weight, rank, whiten(sigma))
    from_data = float(((weight - factors.product()) @ x.T).square().sum() / len(x))
    scale = output_energy(weight, sigma)
    assert from_data == pytest.approx(float(energies[rank:].sum()), rel=1e-4, abs=1e-10 * scale)
    assert truncation_loss(weight, factors, sigma) == pytest.approx(from_data, rel=1e-4, abs=1e-10 * scale)


def test_no_random_candidate_and_no_alternation_is_better() -> None:
    weight, x = problem(20, 14, 60, 1)
    sigma, rank = x.T @ x / len(x), 5
    factors, _ = factor(weight, rank, whiten(sigma))
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
    factors, _ = factor(weight, min(shape), whiten(x.T @ x))
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
    factors, energies = factor(weight, 3, whiten(sigma))
    assert torch.isfinite(factors.u).all() and torch.isfinite(factors.v).all()
    if sigma.any():
        scale = output_energy(weight, sigma)
        assert truncation_loss(weight, factors, sigma) == pytest.approx(
            float(energies[3:].sum()), rel=1e-4, abs=1e-9 * scale
        )


def test_whitener_is_a_square_root() -> None:
    _, x = problem(1, 10, 40, 5)
    for moment in (x.T @ x, x[:4].T @ x[:4], torch.ones(3, 3, dtype=torch.float64)):  # the others are singular
        s = whiten(moment).matrix
        torch.testing.assert_close(s @ s.T, moment, rtol=1e-8, atol=1e-8 * float(moment.norm()))
    torch.testing.assert_close(whiten(torch.zeros(3, 3, dtype=torch.float64)).matrix, torch.eye(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="not finite"):
        whiten(torch.full((2, 2), float("nan"), dtype=torch.float64))


@pytest.mark.parametrize("tokens", [60, 4, 0])  # 4: singular; 0: no gradient at all
def test_output_metric_is_damped_and_its_root_triangular(tokens: int) -> None:
    _, x = problem(1, 10, max(tokens, 1), 5)
    gradient = x.T @ x if tokens else torch.zeros(10, 10, dtype=torch.float64)
    metric = gradient_metric(gradient, 0.1)
    expected = gradient + 0.1 * gradient.diagonal().mean() * torch.eye(10) if tokens else torch.eye(10)
    torch.testing.assert_close(metric.moment, expected.double())
    torch.testing.assert_close(metric.root.T @ metric.root, metric.moment)
    assert torch.equal(metric.root, metric.root.triu())
    with pytest.raises(ValueError, match="not finite"):
        gradient_metric(torch.full((2, 2), float("inf"), dtype=torch.float64))


def test_regression_is_least_squares_where_there_is_a_solution() -> None:
    weight, x = problem(5, 8, 60, 6)
    _, y = problem(1, 8, 60, 7)
    found = regression(y.T @ y, 1e-12).weight(weight @ x.T @ y)
    torch.testing.assert_close(found, torch.linalg.lstsq(y, x @ weight.T).solution.T, rtol=1e-6, atol=1e-6)
    y[:, 0] = 0
    found = regression(y.T @ y, 1e-6).weight(weight @ x.T @ y)
    assert not found[:, 0].any()  # no data, no weight


@pytest.mark.parametrize("rank", [0, 9])
def test_rank_out_of_range(rank: int) -> None:
    with pytest.raises(ValueError, match=r"outside 1\.\.8"):
        factor(torch.ones(8, 12), rank)


def two_sided_loss(weight: torch.Tensor, product: torch.Tensor, sigma: torch.Tensor, g: torch.Tensor) -> float:
    """tr(G dW Sigma dW^T), as written."""
    error = weight - product
    return float(torch.trace(g @ error @ sigma @ error.T))


@settings(max_examples=40, deadline=None)
@given(m=st.integers(2, 20), n=st.integers(2, 20), seed=st.integers(0, 999), data=st.data())
def test_two_sided_loss_is_the_discarded_energy(m: int, n: int, seed: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(m, n)))
    weight, x = problem(m, n, 3 * n, seed)
    _, gradient = problem(1, m, 4 * m, seed + 1)
    sigma, g = x.T @ x / len(x), gradient.T @ gradient / len(gradient)
    factors, energies = factor(weight, rank, whiten(sigma), gradient_metric(g, 1e-12))
    scale = two_sided_loss(weight, torch.zeros_like(weight), sigma, g)
    found = two_sided_loss(weight, factors.product(), sigma, g)
    assert found == pytest.approx(float(energies[rank:].sum()), rel=1e-4, abs=1e-8 * scale)
    torch.testing.assert_close(
        spectrum(weight, whiten(sigma), gradient_metric(g, 1e-12)), energies, rtol=1e-6, atol=1e-9 * scale
    )


@pytest.mark.parametrize("tokens", [60, 6])  # 6: both moments are rank-deficient
def test_no_random_candidate_beats_the_two_sided_optimum(tokens: int) -> None:
    weight, x = problem(16, 12, tokens, 3)
    _, gradient = problem(1, 16, tokens, 4)
    sigma, g = x.T @ x / tokens, gradient.T @ gradient / tokens
    outputs, rank = gradient_metric(g), 4
    damped = outputs.moment
    factors, _ = factor(weight, rank, whiten(sigma), outputs)
    best = two_sided_loss(weight, factors.product(), sigma, damped)
    one_sided, _ = factor(weight, rank, whiten(sigma))
    assert best <= two_sided_loss(weight, one_sided.product(), sigma, damped)
    generator = torch.Generator().manual_seed(2)
    for scale in (1e-4, 1e-2, 1.0):
        for _ in range(30):
            u = factors.u * (1 + scale * torch.randn(factors.u.shape, generator=generator, dtype=torch.float64))
            v = factors.v * (1 + scale * torch.randn(factors.v.shape, generator=generator, dtype=torch.float64))
            assert two_sided_loss(weight, u @ v, sigma, damped) >= best * (1 - 1e-9)


def test_without_gradients_to_tell_apart_two_sided_is_svd_llm() -> None:
    weight, x = problem(9, 14, 50, 5)
    inputs = whiten(x.T @ x)
    plain, _ = factor(weight, 3, inputs)
    two_sided, _ = factor(weight, 3, inputs, gradient_metric(7 * torch.eye(9, dtype=torch.float64)))
    torch.testing.assert_close(two_sided.product(), plain.product())


def test_balanced_factors_have_one_product_and_equal_norms() -> None:
    weight, x = problem(9, 14, 50, 5)
    factors, _ = factor(weight, 3, whiten(x.T @ x))
    even = balanced(LowRankFactors(1e6 * factors.u, factors.v))
    torch.testing.assert_close(even.product(), 1e6 * factors.product())
    torch.testing.assert_close(even.u.norm(dim=0), even.v.norm(dim=1))
    dead = balanced(LowRankFactors(factors.u, 0 * factors.v))
    assert torch.isfinite(dead.u).all() and not dead.product().any()
