"""Codes per block of columns: bit for bit ONNX Runtime's, error bound, padding; rounding that sees the inputs."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowrank_export.exporters.onnx.weights.quantize import (
    BlockFormat,
    codes,
    dequantize,
    quantize,
    quantize_gptq,
    searched_scales,
    stack,
)
from lowrank_export.exporters.rounding.gptq import DAMPING

FORMATS = [
    BlockFormat(bits, block, symmetric) for bits, block, symmetric in product((4, 8), (16, 32, 64), (True, False))
]
FOUR = BlockFormat(4, 32)


def random(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Rows of unequal size; of one sign, zero, or between two codes in places."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * torch.randn(rows, 1, generator=generator).exp()
    weight[1], weight[2], weight[3] = weight[1].abs(), -weight[2].abs(), (weight[3] * 4).round() / 4
    weight[4, :16] = 0
    return weight


def unpacked(values: np.ndarray, bits: int) -> np.ndarray:
    """Codes of every row."""
    if bits == 4:
        values = np.stack([values & 15, values >> 4], axis=-1)
    return values.reshape(len(values), -1)


@pytest.mark.parametrize("columns", [256, 101])
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_bit_for_bit_the_runtimes_own_quantizer(format: BlockFormat, columns: int) -> None:
    from onnxruntime.capi import _pybind_state as runtime  # what `quantization.matmul_nbits_quantizer` calls

    weight, per_byte, blocks = random(300, columns), 8 // format.bits, format.blocks(columns)
    padded = np.zeros((blocks * format.block, 300), dtype=np.float32)
    padded[:columns] = weight.numpy().T
    packed = np.zeros((300, blocks, format.block // per_byte), dtype=np.uint8)
    zeros, scales = np.zeros((300, -(-blocks // per_byte)), dtype=np.uint8), np.zeros((300, blocks), dtype=np.float32)
    encode = getattr(runtime, f"quantize_matmul_{format.bits}bits")
    encode(packed, padded, scales, zeros, format.block, 300, columns, format.symmetric)
    matrix = quantize(weight, format)
    np.testing.assert_array_equal(matrix.scales, scales)
    # it leaves the padding undefined
    ours, theirs = (unpacked(codes, format.bits)[:, :columns] for codes in (matrix.qweight.numpy(), packed))
    np.testing.assert_array_equal(ours, theirs)
    if format.symmetric:
        assert matrix.qzeros is None
    else:
        assert matrix.qzeros is not None and matrix.qzeros.shape == zeros.shape
        ours, theirs = (unpacked(codes, format.bits)[:, :blocks] for codes in (matrix.qzeros.numpy(), zeros))
        np.testing.assert_array_equal(ours, theirs)


@given(
    rows=st.integers(5, 7), columns=st.integers(16, 80), exponent=st.integers(-20, 20), format=st.sampled_from(FORMATS)
)
@settings(max_examples=60, deadline=None)
def test_error_is_at_most_one_step_of_the_block(rows: int, columns: int, exponent: int, format: BlockFormat) -> None:
    weight = random(rows, columns, seed=columns) * 2.0**exponent
    matrix = quantize(weight, format)
    step = matrix.scales.abs().repeat_interleave(format.block, 1)[:, :columns]
    error = (dequantize(matrix) - weight).abs()
    # half a step, and a whole one at the far end of the range
    assert bool((error <= step * 1.001).all())
    if format.symmetric:
        inside = (weight / matrix.scales.repeat_interleave(format.block, 1)[:, :columns]) < format.middle - 0.5
        assert bool((error[inside] <= 0.501 * step[inside]).all())


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_padding_and_zeros(format: BlockFormat) -> None:
    columns = 3 * format.block + 5  # an even number of blocks, and a last one that is mostly padding
    weight = torch.zeros(7, columns)
    weight[0, 0] = 1.0
    matrix = quantize(weight, format)
    assert matrix.qweight.shape == (7, 4, format.block * format.bits // 8) and matrix.scales.shape == (7, 4)
    torch.testing.assert_close(dequantize(matrix), weight, rtol=0, atol=1e-6)
    stored = (
        matrix.qweight.numel() + 4 * matrix.scales.numel() + (0 if matrix.qzeros is None else matrix.qzeros.numel())
    )
    assert stored == 7 * format.row_bytes(columns)
    last = unpacked(quantize(random(7, columns), format).qweight.numpy(), format.bits)[:, columns:]
    assert all(len(set(row)) == 1 for row in last), "padding must be the code of zero"


def test_stacking_is_quantizing_what_is_stacked() -> None:
    for format in FORMATS:
        weight = random(9, 100)
        whole, parts = quantize(weight, format), stack([quantize(weight[:4], format), quantize(weight[4:], format)])
        torch.testing.assert_close(dequantize(parts), dequantize(whole), rtol=0, atol=0)
        assert parts.out_features == 9 and parts.in_features == 100
    with pytest.raises(ValueError, match="one format"):
        stack([quantize(weight, FOUR), quantize(weight, FORMATS[0])])


def inputs_moment(columns: int) -> Tensor:
    """Of inputs whose features are correlated and of unequal size."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = torch.linalg.qr(mixing)[0] * torch.logspace(0, -2, columns, dtype=torch.float64)
    return inputs @ inputs.T


def loss(weight: Tensor, values: Tensor, moment: Tensor) -> float:
    error = (weight - values).double()
    return float((error @ moment * error).sum())


@pytest.mark.parametrize("columns", [256, 101])
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_aware_rounding_keeps_outputs_closer(format: BlockFormat, columns: int) -> None:
    weight, moment = random(24, columns), inputs_moment(columns)
    rounded = quantize_gptq(weight, moment, format)
    torch.testing.assert_close(dequantize(rounded.encoded), rounded.values, rtol=0, atol=0)
    nearest = dequantize(quantize(weight, format))
    assert loss(weight, rounded.values, moment) < 0.7 * loss(weight, nearest, moment)


def compensated(weight: Tensor, moment: Tensor, format: BlockFormat) -> Tensor:
    """The slow way: after every column the later ones are solved for anew, D = -E H_done,left H_left,left^-1."""
    damped = moment + DAMPING * moment.diagonal().mean() * torch.eye(len(moment), dtype=torch.float64)
    values, columns = torch.empty_like(weight).double(), weight.shape[1]

    def wanted(done: int) -> Tensor:
        cross = (values[:, :done] - weight[:, :done].double()) @ damped[:done, done:]
        return (weight[:, done:].double() - torch.linalg.solve(damped[done:, done:], cross.T).T).float()

    for start in range(0, columns, format.block):
        stop = min(start + format.block, columns)
        block = wanted(start)[:, None, : stop - start]
        scales, zeros = searched_scales(block, damped.diagonal()[start:stop].float(), format)
        for k in range(start, stop):
            chosen = codes(wanted(k)[:, None, :1], scales, zeros, format)[:, 0].float()
            values[:, k] = ((chosen - zeros) * scales)[:, 0]
    return values.float()


@pytest.mark.parametrize("format", [FOUR, BlockFormat(4, 32, False), BlockFormat(8, 16)], ids=str)
def test_aware_rounding_against_a_slow_reference(format: BlockFormat) -> None:
    weight, moment = random(6, 75), inputs_moment(75)
    found, slow = quantize_gptq(weight, moment, format).values, compensated(weight, moment, format)
    assert (
        torch.isclose(found, slow, rtol=1e-4).float().mean() > 0.95
    )  # the rest lay between two codes to the last digit, or followed one that did


def test_searched_scales_are_no_worse_than_those_that_reach_everything() -> None:
    grouped, importance = random(50, 32)[:, None], torch.logspace(0, -2, 32)
    for format in FORMATS:
        scales, zeros = searched_scales(grouped, importance, format)
        values = (codes(grouped, scales, zeros, format).float() - zeros[..., None]) * scales[..., None]
        plain = dequantize(quantize(grouped[:, 0], BlockFormat(format.bits, 32, format.symmetric)))[:, None]
        found, before = (((grouped - v).square() * importance).sum(-1) for v in (values, plain))
        assert bool((found <= before * (1 + 1e-6)).all())


def test_features_that_are_always_zero() -> None:
    weight = random(8, 64)
    rounded = quantize_gptq(weight, torch.zeros(64, 64, dtype=torch.float64), FOUR)
    assert bool(torch.isfinite(rounded.values).all()) and rounded.encoded.qweight.shape == (8, 2, 16)
