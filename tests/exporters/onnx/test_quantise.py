"""8 bits per block: error bound, padding, zeros."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowrank_export.exporters.onnx.quantise import BLOCK, blocks, dequantise, quantise


def slow_quantise(weight: Tensor) -> Tensor:
    """What `quantise` then `dequantise` must give, one block at a time."""
    result = torch.zeros_like(weight)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], BLOCK):
            block = weight[row, start : start + BLOCK]
            peak = block[block.abs().argmax()]
            scale = peak / -128
            if scale != 0:
                result[row, start : start + BLOCK] = (block / scale).round().clamp(-128, 127) * scale
    return result


@pytest.mark.parametrize("columns", [BLOCK, 3 * BLOCK, 37, 1])
def test_agrees_with_the_slow_reference(columns: int) -> None:
    weight = torch.randn(5, columns, generator=torch.Generator().manual_seed(columns))
    torch.testing.assert_close(dequantise(quantise(weight)), slow_quantise(weight), rtol=1e-6, atol=1e-7)


@given(rows=st.integers(1, 4), columns=st.integers(1, 80), exponent=st.integers(-20, 20), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_error_is_at_most_one_step_of_the_block(rows: int, columns: int, exponent: int, seed: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    matrix = quantise(weight)
    step = matrix.scales.abs().repeat_interleave(BLOCK, 1)[:, :columns]
    error = (dequantise(matrix) - weight).abs()
    # half a step, and a whole one only at the far end of the range, where code 256 does not exist
    assert bool((error <= step * 1.001).all())
    inside = (weight / matrix.scales.repeat_interleave(BLOCK, 1)[:, :columns]) < 127.5
    assert bool((error[inside] <= 0.501 * step[inside]).all())


def test_shapes_and_padding() -> None:
    matrix = quantise(torch.randn(3, BLOCK + 5))
    assert matrix.qweight.shape == (3, 2, BLOCK) and matrix.scales.shape == (3, 2)
    assert blocks(BLOCK + 5) == 2
    assert bool((matrix.qweight[:, 1, 5:] == 128).all()), "padding must be the code of zero"


def test_zero_blocks_stay_zero() -> None:
    weight = torch.zeros(2, 2 * BLOCK)
    weight[0, 0] = 1.0
    torch.testing.assert_close(dequantise(quantise(weight)), weight, rtol=0, atol=0)
