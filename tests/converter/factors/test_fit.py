"""The stages of one linear in their order: losses as reported, alignment towards the dense output."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lowrank_export.converter.factors.adaptive_alignment import ALPHA_MAX, ALPHA_MIN
from lowrank_export.converter.factors.fit import aligned_target, fit_linear, group_metric
from lowrank_export.converter.methods import METHODS, Method
from lowrank_export.converter.statistics.moments import GroupMoments, Moment


def moments(n: int, seed: int = 0, noise: float = 0.3) -> tuple[GroupMoments, torch.Tensor, torch.Tensor]:
    """Moments of X and of X', which departs from it."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, n, generator=generator) @ torch.randn(n, n, generator=generator)
    y = x + noise * torch.randn(400, n, generator=generator)
    found = GroupMoments()
    found.dense.add(x)
    found.compressed.add(y)
    found.cross_moment.add_cross(x - y, y)
    found.mean_abs = x.abs().mean(dim=0).double()
    found.held_out.add(y[:100])
    return found, x.double(), y.double()


def weight(m: int, n: int) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("method", METHODS)
def test_reported_losses_are_those_of_the_factors(method: str) -> None:
    w = weight(12, 10)
    gathered, _, _ = moments(10)
    metric = group_metric(METHODS[method], gathered, "moments")
    factors, loss = fit_linear(w, 4, metric, iterations=1)
    assert loss is not None and metric.evaluation is not None
    w = aligned_target(w.double(), 4, metric)
    for found, sigma in (
        (loss.compensated, metric.evaluation),
        (loss.held_out_compensated, gathered.held_out.mean()),
    ):
        residual = w - factors.product()
        expected = float(torch.trace(residual @ sigma @ residual.T) / torch.trace(w @ sigma @ w.T))
        assert found == pytest.approx(expected, rel=1e-9)
    assert loss.compensated <= loss.truncated * (1 + 1e-9)


def test_adacomp_lowers_the_loss_where_the_compressed_stream_differs() -> None:
    gathered, _, _ = moments(10, noise=3.0)
    _, loss = fit_linear(weight(12, 10), 4, group_metric(METHODS["adasvd"], gathered, "moments"), iterations=1)
    assert loss is not None and loss.compensated < 0.999 * loss.truncated


def aligned(alpha: float) -> Method:
    return Method("aligned", "", "compressed", "uniform", alpha=alpha)


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_alignment_minimizes_its_own_objective(alpha: float) -> None:
    """||((1 - alpha) W X' + alpha W X) - U V^T X'|| is smaller than for any factors nearby."""
    w = weight(12, 10)
    gathered, x, y = moments(10)
    factors, _ = fit_linear(w, 4, group_metric(aligned(alpha), gathered, "moments"), iterations=0)
    target = ((1 - alpha) * y + alpha * x) @ w.double().T

    def objective(product: torch.Tensor) -> float:
        return float((target - y @ product.T).square().sum())

    best = objective(factors.product())
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-3, 1e-2, 1e-1):
        for _ in range(20):
            u = factors.u + scale * torch.randn(12, 4, generator=generator, dtype=torch.float64)
            v = factors.v + scale * torch.randn(4, 10, generator=generator, dtype=torch.float64)
            assert objective(u @ v) >= best * (1 - 1e-6)


def test_alignment_is_the_same_from_the_moment_of_outputs() -> None:
    """W Delta gathered from outputs stands for Delta where there are fewer outputs than inputs."""
    w = weight(4, 10).double()
    gathered, x, y = moments(10)
    expected = aligned_target(w, 2, group_metric(aligned(0.5), gathered, "moments"))
    gathered.cross_moment = Moment()
    gathered.output_cross_moment.add_cross((x - y) @ w.T, y)
    torch.testing.assert_close(
        aligned_target(w, 2, group_metric(aligned(0.5), gathered, "moments")), expected, rtol=1e-4, atol=1e-5
    )


def test_alignment_of_equal_streams_changes_nothing() -> None:
    w = weight(12, 10)
    gathered, _, _ = moments(10, noise=0.0)
    plain, _ = fit_linear(w, 4, group_metric(aligned(0.0), gathered, "moments"), iterations=0)
    whole, _ = fit_linear(w, 4, group_metric(aligned(1.0), gathered, "moments"), iterations=0)
    torch.testing.assert_close(whole.product(), plain.product(), rtol=1e-3, atol=1e-3)


def test_pifa_m_never_raises_its_own_objective_and_ends_at_the_best_v() -> None:
    """Truncation on X, then U, then V^T for the target (1 - 0.25) W X' + 0.25 W X on raw activations."""
    w = weight(12, 10)
    gathered, x, y = moments(10, noise=1.0)
    metric = group_metric(METHODS["pifa-m"], gathered, "moments")
    target = (0.75 * y + 0.25 * x) @ w.double().T
    truncated, _ = fit_linear(w, 4, metric, iterations=0)
    factors, _ = fit_linear(w, 4, metric, iterations=1)
    plain, _ = fit_linear(w, 4, group_metric(METHODS["svd-llm"], gathered, "moments"), iterations=0)
    torch.testing.assert_close(truncated.product(), plain.product())
    u = torch.linalg.lstsq(y @ truncated.v.T, target).solution.T
    v = torch.linalg.pinv(u) @ torch.linalg.lstsq(y, target).solution.T
    torch.testing.assert_close(factors.product(), u @ v, rtol=1e-3, atol=1e-3)

    def objective(product: torch.Tensor) -> float:
        return float((target - y @ product.T).square().sum())

    assert objective(u @ v) <= objective(u @ truncated.v) <= objective(truncated.product())
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        nearby = factors.v + 1e-2 * torch.randn(4, 10, generator=generator, dtype=torch.float64)
        assert objective(factors.u @ nearby) >= objective(factors.product()) * (1 - 1e-6)


def test_saes_of_equal_streams_is_svd_llm() -> None:
    w = weight(12, 10)
    gathered, _, _ = moments(10, noise=0.0)
    saes, _ = fit_linear(w, 4, group_metric(METHODS["saes"], gathered, "moments"), iterations=0)
    plain, _ = fit_linear(w, 4, group_metric(METHODS["svd-llm"], gathered, "moments"), iterations=0)
    torch.testing.assert_close(saes.product(), plain.product(), rtol=1e-4, atol=1e-4)


def test_saes_at_its_alpha_is_the_fixed_alpha() -> None:
    """The adaptive target is that of its alpha, which lies inside the guard rails and differs between linears.

    X' has half of the features too large and half too small; a linear whose leading directions are the latter gains.
    """
    x = torch.randn(400, 10, generator=torch.Generator().manual_seed(0))
    y = x * torch.tensor([2.0] * 5 + [0.5] * 5)
    gathered = GroupMoments()
    gathered.compressed.add(y)
    gathered.cross_moment.add_cross(x - y, y)
    metric = group_metric(METHODS["saes"], gathered, "moments")
    found = []
    for reads in (slice(0, 5), slice(5, 10)):
        w = weight(12, 10).double()
        w[:, reads] *= 20
        update = aligned_target(w, 4, metric) - w
        whole = aligned_target(w, 4, replace(metric, method=aligned(1.0))) - w
        alpha = float((update * whole).sum() / whole.square().sum())
        torch.testing.assert_close(update, alpha * whole)
        assert ALPHA_MIN - 1e-9 <= alpha <= ALPHA_MAX + 1e-9
        found.append(alpha)
    assert found == pytest.approx([ALPHA_MIN, ALPHA_MAX])


def test_fwsvd_weighs_input_features_by_their_fisher_information() -> None:
    w = weight(12, 10).double()
    metric = group_metric(METHODS["fwsvd"], GroupMoments(), "moments")
    fisher = torch.rand(10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def product(given: torch.Tensor) -> torch.Tensor:
        return fit_linear(w, 4, metric, iterations=0, fisher=given)[0].product()

    scale = fisher.sqrt()
    u, s, vt = torch.linalg.svd(w * scale)
    torch.testing.assert_close(product(fisher), (u[:, :4] * s[:4]) @ vt[:4] / scale)
    torch.testing.assert_close(product(7 * fisher), product(fisher))
    plain = fit_linear(w, 4, group_metric(METHODS["svd"], GroupMoments(), "moments"), iterations=0)[0].product()
    torch.testing.assert_close(product(torch.ones(10, dtype=torch.float64)), plain)
    torch.testing.assert_close(product(torch.zeros(10, dtype=torch.float64)), plain)
    assert ((product(fisher) - w) * scale).square().sum() < ((plain - w) * scale).square().sum()
    fisher[2] = 1e8
    assert (product(fisher) - w)[:, 2].abs().max() < 1e-3 * w[:, 2].abs().max()


def test_asvd_scales_input_features_by_the_root_of_their_mean_absolute_value() -> None:
    w = weight(12, 10).double()
    gathered, x, _ = moments(10)
    factors, _ = fit_linear(w, 4, group_metric(METHODS["asvd"], gathered, "moments"), iterations=0)
    scale = x.abs().mean(dim=0).sqrt()
    u, s, vt = torch.linalg.svd(w * scale)
    torch.testing.assert_close(factors.product(), (u[:, :4] * s[:4]) @ vt[:4] / scale, rtol=1e-5, atol=1e-5)


def test_features_that_are_never_active_do_not_break_a_diagonal_metric() -> None:
    w = weight(12, 10).double()
    for dead in (torch.arange(10) < 3, torch.ones(10, dtype=torch.bool)):
        gathered = GroupMoments(mean_abs=torch.where(dead, 0.0, 1.0).double())
        factors, _ = fit_linear(w, 4, group_metric(METHODS["asvd"], gathered, "moments"), iterations=0)
        assert torch.isfinite(factors.product()).all()


def test_plain_svd_needs_no_activations() -> None:
    factors, loss = fit_linear(weight(12, 10), 4, group_metric(METHODS["svd"], GroupMoments(), "moments"), iterations=1)
    u, s, vt = torch.linalg.svd(weight(12, 10).double())
    torch.testing.assert_close(factors.product(), (u[:, :4] * s[:4]) @ vt[:4], rtol=1e-6, atol=1e-6)
    assert loss is None
