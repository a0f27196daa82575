"""Linears that take back what was lost before them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowrank_export.converter.checkpoint.lowrank_linear import LowRankLinear
from lowrank_export.exporters.rounding.gptq import Rounded
from lowrank_export.exporters.rounding.gptq_linears import WEIGHT, U, V, alignment, round_linear

M, N, T = 12, 16, 500


def streams() -> tuple[Tensor, Tensor]:
    """Inputs (T, N) of a model as it was, and of the same model with errors that its inputs show."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(T, N, generator=generator, dtype=torch.float64)
    lost = 0.2 * torch.randn(N, N, generator=generator, dtype=torch.float64) / N**0.5
    return x, x - x @ lost + 0.01 * torch.randn(T, N, generator=generator, dtype=torch.float64)


def unrounded(name: str, weights: Tensor, moment: Tensor, type: str) -> Rounded[Tensor]:
    return Rounded(weights, weights)


def test_alignment_is_least_squares() -> None:
    """W (I + A) X' against what a solver finds for W X, up to the damping."""
    x, y = streams()
    weight = torch.randn(M, N, dtype=torch.float64)
    towards = alignment(y.T @ y / T, (x - y).T @ y / T)
    fitted = torch.linalg.lstsq(y, x @ weight.T).solution.T
    assert torch.allclose(weight + weight @ towards, fitted, atol=0.01 * float(weight.abs().max()))


def test_nothing_lost_nothing_moved() -> None:
    x, _ = streams()
    assert not alignment(x.T @ x / T, torch.zeros(N, N, dtype=torch.float64)).any()


def test_outputs_come_closer_dense_and_factored() -> None:
    x, y = streams()
    moment, towards = y.T @ y / T, alignment(y.T @ y / T, (x - y).T @ y / T)
    dense = nn.Linear(N, M, bias=False).requires_grad_(False)
    factored = LowRankLinear(N, M, 8, bias=False).requires_grad_(False)
    for part in factored.children():
        nn.init.normal_(part.weight)  # type: ignore[arg-type]
    for linear, types in ((dense, {WEIGHT: "q8_0"}), (factored, {U: "q8_0", V: "q8_0"})):
        wanted = linear(x.float())
        before = float((linear(y.float()) - wanted).square().sum())
        moved, _ = round_linear("linear", linear, moment, types, unrounded, towards)
        after = float((moved(y.float()) - wanted).square().sum())
        assert after < (0.05 if linear is dense else 0.9) * before
