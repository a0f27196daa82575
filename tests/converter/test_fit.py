"""The stages of one linear in their order: losses as reported, alignment towards the dense output."""

from __future__ import annotations

import pytest
import torch

from lowrank_export.converter.factorisation import output_energy, truncation_loss
from lowrank_export.converter.fit import fit_linear, group_metric
from lowrank_export.converter.methods import METHODS, Method
from lowrank_export.converter.moments import GroupMoments


def moments(n: int, seed: int = 0, drift: float = 0.3) -> tuple[GroupMoments, torch.Tensor, torch.Tensor]:
    """Moments of X and of X', which drifts away from it."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(400, n, generator=generator) @ torch.randn(n, n, generator=generator)
    y = x + drift * torch.randn(400, n, generator=generator)
    found = GroupMoments()
    found.dense.add(x)
    found.compressed.add(y)
    found.cross.add_cross(x, y)
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
    w = w if metric.alignment is None else w.double() @ metric.alignment
    energy = output_energy(w, metric.evaluation)
    assert loss.compensated == pytest.approx(truncation_loss(w, factors, metric.evaluation) / energy, rel=1e-9)
    held_out = gathered.held_out.mean()
    expected = truncation_loss(w, factors, held_out) / output_energy(w, held_out)
    assert loss.held_out_compensated == pytest.approx(expected, rel=1e-9)
    assert loss.compensated <= loss.truncated * (1 + 1e-9)


def test_adacomp_lowers_the_loss_where_the_compressed_stream_differs() -> None:
    gathered, _, _ = moments(10, drift=3.0)
    _, loss = fit_linear(weight(12, 10), 4, group_metric(METHODS["adasvd"], gathered, "moments"), iterations=1)
    assert loss is not None and loss.compensated < 0.999 * loss.truncated


def aligned(alpha: float) -> Method:
    return Method("aligned", "", "compressed", "uniform", alpha=alpha)


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_alignment_minimises_its_own_objective(alpha: float) -> None:
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


def test_alignment_without_drift_changes_nothing() -> None:
    w = weight(12, 10)
    gathered, _, _ = moments(10, drift=0.0)
    plain, _ = fit_linear(w, 4, group_metric(aligned(0.0), gathered, "moments"), iterations=0)
    whole, _ = fit_linear(w, 4, group_metric(aligned(1.0), gathered, "moments"), iterations=0)
    torch.testing.assert_close(whole.product(), plain.product(), rtol=1e-3, atol=1e-3)


def test_plain_svd_needs_no_activations() -> None:
    factors, loss = fit_linear(weight(12, 10), 4, group_metric(METHODS["svd"], GroupMoments(), "moments"), iterations=1)
    u, s, vt = torch.linalg.svd(weight(12, 10).double())
    torch.testing.assert_close(factors.product(), (u[:, :4] * s[:4]) @ vt[:4], rtol=1e-6, atol=1e-6)
    assert loss is None
