"""Rounding by rows: against a slow reference, never worse than to the nearest, and what the bytes say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lowrank_export.exporters.gguf.codes import CODES
from lowrank_export.exporters.gguf.ggml_encoder import ggml_decode
from lowrank_export.exporters.gguf.rounding import Rows, round_nearest, round_rows
from lowrank_export.exporters.gguf.types import TYPES
from lowrank_export.exporters.rounding.gptq import DAMPING

ROUNDED = [name for name in TYPES if TYPES[name].block > 1]


def problem(rows: int = 24, columns: int = 512, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights, and the second moment of inputs whose features are correlated and of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(rows, columns, generator=generator)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = torch.linalg.qr(mixing)[0] * torch.logspace(0, -2, columns, dtype=torch.float64)
    return weights, inputs @ inputs.T


def loss(weights: Tensor, rounded: Rows, moment: Tensor) -> float:
    error = (weights - rounded.values).double()
    return float((error @ moment * error).sum())


@pytest.mark.parametrize("type", ROUNDED)
def test_error_is_below_that_of_the_nearest(type: str, ggml: Path) -> None:
    weights, moment = problem()
    nearest = round_nearest(weights, type, ggml, moment.diagonal())
    assert loss(weights, round_rows(weights, moment, type, ggml), moment) < 0.9 * loss(weights, nearest, moment)


@pytest.mark.parametrize("type", ROUNDED)
def test_bytes_say_what_the_values_are(type: str, ggml: Path) -> None:
    rounded = round_rows(*problem(), type, ggml)
    np.testing.assert_array_equal(ggml_decode(ggml, rounded.encoded, type, 512), rounded.values.numpy())


@pytest.mark.parametrize("type", ROUNDED)
def test_inputs_alike_leave_nothing_to_make_up_for(type: str, ggml: Path) -> None:
    """ggml looks at a whole row for the spread of its weights, here it is given a block of it: compared so too."""
    width = TYPES[type].block
    weights, moment = problem(columns=width)[0], torch.eye(width, dtype=torch.float64)
    rounded, nearest = round_rows(weights, moment, type, ggml), round_nearest(weights, type, ggml, moment.diagonal())
    # some types search codes together with the scale: not every code is the nearest at the scale they end with
    assert loss(weights, rounded, moment) <= loss(weights, nearest, moment) * (1 + 1e-6)
    if type not in CODES:
        np.testing.assert_array_equal(rounded.encoded, nearest.encoded)


def compensated(weights: Tensor, moment: Tensor, type: str, library: Path) -> Tensor:
    """The slow way: after every column (or block of columns) the later ones are solved for anew.

    With E the error of the columns that are done, the best change D of the others minimizes
    tr((E, D) H (E, D)^T): D = -E H_done,left H_left,left^-1.
    """
    damped = moment + DAMPING * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
    values, columns, width = torch.empty_like(weights).double(), weights.shape[1], TYPES[type].block
    step = 1 if type in CODES else width

    def wanted(done: int) -> Tensor:
        error = values[:, :done] - weights[:, :done].double()
        cross = error @ damped[:done, done:]
        return weights[:, done:].double() - torch.linalg.solve(damped[done:, done:], cross.T).T

    for start in range(0, columns, width):
        block = wanted(start)[:, :width]
        nearest = round_nearest(block.float(), type, library, damped.diagonal()[start : start + width])
        if step > 1:
            values[:, start : start + width] = nearest.values
            continue
        scale, offset = CODES[type].scales(nearest.encoded)
        for k in range(start, start + width):
            codes = CODES[type].nearest(wanted(k)[:, 0].float().numpy(), scale, offset)
            values[:, k] = torch.from_numpy(CODES[type].values(codes, scale, offset))
    return values.float()


@pytest.mark.parametrize("type", ["q4_0", "iq4_nl", "q4_1", "q3_k", "iq2_xs"])
def test_slow_reference(type: str, ggml: Path) -> None:
    weights, moment = problem(rows=6, columns=TYPES[type].block * (3 if type in CODES else 2))
    rounded = round_rows(weights, moment, type, ggml)
    same = (rounded.values == compensated(weights, moment, type, ggml)).float().mean()
    assert same > 0.97  # the rest lay between two levels to the last digit, or followed one that did


@pytest.mark.parametrize("rank", [0, 1, 40])
def test_singular_moments(rank: int, ggml: Path) -> None:
    weights = problem(columns=64)[0]
    inputs = torch.randn(rank, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    rounded, nearest = (round(weights, inputs.T @ inputs, ggml) for round in (_rows, _nearest))
    assert bool(torch.isfinite(rounded.values).all())
    assert loss(weights, rounded, inputs.T @ inputs) <= loss(weights, nearest, inputs.T @ inputs)


def _rows(weights: Tensor, moment: Tensor, library: Path) -> Rows:
    return round_rows(weights, moment, "q4_0", library)


def _nearest(weights: Tensor, _moment: Tensor, library: Path) -> Rows:
    return round_nearest(weights, "q4_0", library)


@pytest.mark.parametrize(("type", "dtype"), [("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_types_without_blocks(type: str, dtype: torch.dtype, ggml: Path) -> None:
    from lowrank_export.exporters.gguf.encoding import encode

    weights, moment = problem(columns=33)
    rounded = round_rows(weights, moment, type, ggml)
    np.testing.assert_array_equal(rounded.encoded, encode("w", weights.numpy(), type).view(np.uint8))
    assert torch.equal(rounded.values, weights.to(dtype).float())
