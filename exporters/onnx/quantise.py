"""Weights to 8 bits per block of columns: the one encoding MatMulNBits and GatherBlockQuantized share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BITS = 8
BLOCK = 32
"""Columns that share one scale. Measured in docs/onnx.md; a multiple of 16 and a power of two."""

ACCURACY_LEVEL = 4
"""MatMulNBits: 0 multiplies in float, 4 rounds activations to 8 bits per block too. Measured in docs/onnx.md."""

_ZERO = 128  # both operators take 2^(bits - 1) as the zero point when none is stored
_ROWS_AT_ONCE = 4096  # bounds the scratch memory of an embedding


@dataclass(frozen=True)
class QuantisedMatrix:
    """A matrix (rows x columns) stored in 8 bits, with what the model builder reads of a quantised linear.

    Attributes:
        qweight: uint8 (rows, blocks, BLOCK); the last block is padded with the code of zero.
        scales: float32 (rows, blocks); weight = scale * (code - 128).
        in_features: columns, without the padding.
        out_features: rows.
        bits: 8.
        group_size: BLOCK.
    """

    qweight: Tensor
    scales: Tensor
    in_features: int
    out_features: int
    bits: int = BITS
    group_size: int = BLOCK


def blocks(columns: int) -> int:
    """Number of blocks that hold a row of `columns` weights."""
    return -(-columns // BLOCK)


def quantise(weight: Tensor) -> QuantisedMatrix:
    """Round a matrix to 8 bits, symmetrically, with one float32 scale per row and block of `BLOCK` columns.

    The largest magnitude of a block maps to code 0 (that is -128 steps), so all 256 codes are in reach; the error is
    at most half a step. A block of zeros stays exactly zero.

    Args:
        weight: (rows, columns), any float dtype; columns need not be a multiple of `BLOCK`.
    """
    import torch

    rows, columns = weight.shape
    qweight = torch.empty((rows, blocks(columns), BLOCK), dtype=torch.uint8)
    scales = torch.empty((rows, blocks(columns)), dtype=torch.float32)
    for start in range(0, rows, _ROWS_AT_ONCE):
        part = slice(start, min(start + _ROWS_AT_ONCE, rows))
        qweight[part], scales[part] = _quantise_rows(weight[part])
    return QuantisedMatrix(qweight, scales, in_features=columns, out_features=rows)


def dequantise(matrix: QuantisedMatrix) -> Tensor:
    """The float32 matrix (rows, columns) the runtime computes with."""
    values = (matrix.qweight.float() - _ZERO) * matrix.scales[..., None]
    return values.reshape(matrix.out_features, -1)[:, : matrix.in_features]


def _quantise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    import torch

    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight.detach().float(), (0, blocks(columns) * BLOCK - columns))
    grouped = padded.reshape(rows, -1, BLOCK)
    low, high = grouped.aminmax(dim=-1, keepdim=True)
    largest = torch.where(high > -low, high, low)
    scales = largest / -_ZERO
    steps = torch.where(scales == 0, 0.0, grouped / scales)
    return (steps.round().clamp(-_ZERO, _ZERO - 1) + _ZERO).to(torch.uint8), scales.squeeze(-1)
