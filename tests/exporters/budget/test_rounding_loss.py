"""Predicted rounding losses against errors that are really fed forward."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lowrank_export.converter.factors.factorization import factor
from lowrank_export.converter.factors.whitening import gradient_metric, whiten
from lowrank_export.exporters.budget.gguf_format import GgufFormat
from lowrank_export.exporters.budget.linears import linear_costs, normal_error
from lowrank_export.exporters.budget.rounding_loss import column_weights, dense_loss
from lowrank_export.exporters.gguf.rounding import round_rows
from lowrank_export.exporters.rounding.balancing import balance_factors, refit_u

M, N = 192, 256


def moments() -> tuple[Tensor, Tensor, Tensor]:
    """W (M, N), Sigma (N, N) and G (M, M) with directions of unequal size, as trained models have."""
    generator = torch.Generator().manual_seed(0)

    def moment(size: int) -> Tensor:
        mixing = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
        return mixing.T @ torch.diag(torch.logspace(0.5, -1.5, size, dtype=torch.float64)) @ mixing

    decay = torch.logspace(0, -1.5, N, dtype=torch.float64)
    weight = torch.randn(M, N, generator=generator, dtype=torch.float64) * 0.1 @ torch.diag(decay)
    turned = weight @ torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64))[0]
    return turned, moment(N), moment(M)


def loss(error: Tensor, sigma: Tensor, gradient: Tensor) -> float:
    return float(torch.trace(gradient @ error.double() @ sigma @ error.double().T)) / 2


def test_dense_loss_is_its_sum() -> None:
    weight, sigma, gradient = moments()
    error, columns = weight[:5, :7], column_weights(sigma)[:7]
    slow = sum(
        float(gradient[i, i] * error[i, k] ** 2 * columns[k]) / 2 for i in range(5) for k in range(7)
    )  # one weight at a time
    assert dense_loss(error, gradient.diagonal()[:5], columns) == pytest.approx(slow)


def test_column_weights_are_conditional_variances() -> None:
    """1 / R_kk^2 is what is left of column k's inputs once those after it are known."""
    _, sigma, _ = moments()
    damped = sigma + 0.01 * sigma.diagonal().mean() * torch.eye(N, dtype=torch.float64)
    for k in (0, 100, N - 1):
        later = slice(k + 1, None)
        known = damped[k, later] @ torch.linalg.pinv(damped[later, later]) @ damped[later, k] if k < N - 1 else 0.0
        assert float(column_weights(sigma)[k]) == pytest.approx(float(damped[k, k] - known), rel=1e-4)


@pytest.mark.parametrize("type", ["q8_0", "q5_0", "iq4_nl", "q4_k"])
def test_dense_prediction(type: str, ggml: Path) -> None:
    weight, sigma, gradient = moments()
    kind, outputs = GgufFormat(ggml), gradient_metric(gradient)
    costs = linear_costs(weight, whiten(sigma), outputs, {type: kind.width(type)}, kind.round_plainly, factored=False)
    real = loss(weight - round_rows(weight.float(), sigma, type, ggml).values, sigma, outputs.moment)
    # what feeding forward leaves is random, and errors of a K-quant move on by whole blocks
    assert real == pytest.approx(costs.dense[type], rel=0.3)


@pytest.mark.parametrize("types", [("q8_0", "iq4_nl"), ("iq4_nl", "q8_0"), ("q5_0", "q5_0")])
@pytest.mark.parametrize("rank", [32, 96])
def test_factors_prediction(types: tuple[str, str], rank: int, ggml: Path) -> None:
    weight, sigma, gradient = moments()
    kind, inputs, outputs = GgufFormat(ggml), whiten(sigma), gradient_metric(gradient)
    costs = linear_costs(weight, inputs, outputs, {}, kind.round_plainly)
    at = list(costs.ranks).index(rank)
    factors, _ = factor(weight, rank, inputs, outputs)
    truncated = loss(weight - factors.product(), sigma, outputs.moment)
    assert costs.truncated[at] == pytest.approx(truncated, rel=1e-6)
    u, v = balance_factors(factors.u, factors.v, sigma, 1)
    rounded_v = round_rows(v.float(), sigma, types[1], ggml).values
    fitted, latent = refit_u(u, v, rounded_v, sigma)
    rounded_u = round_rows(fitted.float(), latent, types[0], ggml).values
    real = loss(weight - rounded_u.double() @ rounded_v.double(), sigma, outputs.moment) - truncated
    errors = [normal_error(type, kind.round_plainly) for type in types]
    # V's part is a fit over real models, and good to a factor; U's is arithmetic
    assert real == pytest.approx(costs.u[at] * errors[0] + costs.v[at] * errors[1], rel=0.5)
