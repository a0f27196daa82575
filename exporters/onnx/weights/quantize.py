"""Weights to 4 or 8 bits per block of columns: the one encoding MatMulNBits and GatherBlockQuantized share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ...rounding.gptq import Rounded

ROWS_AT_ONCE = 4096  # bounds the scratch memory of an embedding
SHRINKINGS = tuple(1 - step / 40 for step in range(13))
"""Scales that aware rounding tries, in units of the one that reaches the largest weight."""


@dataclass(frozen=True)
class BlockFormat:
    """How a matrix is stored: weight = scale * (code - zero point), with one scale per row and block of columns.

    Attributes:
        bits: of a code: 4 or 8.
        block: columns that share a scale: 16, 32, 64, 128 or 256.
        symmetric: the zero point is 2^(bits - 1) and not stored, else every block has its own.
    """

    bits: int
    block: int
    symmetric: bool = True

    def blocks(self, columns: int) -> int:
        """Number of blocks that hold a row of `columns` weights."""
        return -(-columns // self.block)

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row: codes, padded to whole blocks, float32 scales, and zero points, padded to whole bytes."""
        blocks = self.blocks(columns)
        zeros = 0 if self.symmetric else -(-blocks * self.bits // 8)
        return blocks * (self.block * self.bits // 8 + 4) + zeros

    @property
    def middle(self) -> int:
        """Zero point of a symmetric block."""
        return 1 << (self.bits - 1)

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix (rows x columns) in a `BlockFormat`, with what the model builder reads of a quantized linear.

    Attributes:
        qweight: uint8 (rows, blocks, bytes per block); of 4-bit codes, two to a byte, the lower half comes first. The
            last block is padded with the code of zero.
        scales: float32 (rows, blocks).
        qzeros: uint8 (rows, bytes per row), packed as the codes are; None where they are symmetric.
        in_features: columns, without the padding.
        format: the encoding.
    """

    qweight: Tensor
    scales: Tensor
    qzeros: Tensor | None
    in_features: int
    format: BlockFormat

    @property
    def out_features(self) -> int:
        """Rows."""
        return int(self.qweight.shape[0])

    @property
    def bits(self) -> int:
        """Of a code."""
        return self.format.bits

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.format.block


def quantize(weight: Tensor, format: BlockFormat) -> QuantizedMatrix:
    """Round every weight to the nearest code at the scale of its block, bit for bit as ONNX Runtime's quantizer does.

    Symmetric: the largest magnitude of a block maps to code 0, so all codes are in reach; the error is at most half a
    step, and a whole one at the far end. Asymmetric: from the least to the largest weight, both counted with zero. A
    block of zeros stays exactly zero.

    Args:
        weight: (rows, columns), any float dtype; columns need not be a multiple of the block.
        format: the encoding.
    """
    import torch

    rows = weight.shape[0]
    parts = []
    for start in range(0, rows, ROWS_AT_ONCE):
        part = weight[start : start + ROWS_AT_ONCE].detach().float()
        padding = format.blocks(part.shape[1]) * format.block - part.shape[1]
        grouped = torch.nn.functional.pad(part, (0, padding)).reshape(len(part), -1, format.block)
        scales, zeros = block_scales(grouped, format)
        parts.append(_packed(codes(grouped, scales, zeros, format), scales, zeros, weight.shape[1], format))
    return stack(parts)


def quantize_gptq(weight: Tensor, moment: Tensor, format: BlockFormat) -> Rounded[QuantizedMatrix]:
    """Round a matrix so that its product with the inputs stays close, see `gptq.round_blocks`.

    The scale of a block is the one of `SHRINKINGS` that rounds it with the least error, weighted by the inputs: a few
    clipped weights may cost less than a coarse step for all.

    Args:
        weight: (rows, columns).
        moment: H (columns, columns), second moment of the inputs.
        format: the encoding.
    """
    import torch

    from ...rounding.gptq import Rounded, round_blocks, round_columns

    Block = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # codes, scales, zero points

    def round_block(block: Tensor, corner: Tensor, importance: Tensor) -> tuple[Rounded[Block], Tensor]:
        scales, zeros = searched_scales(block[:, None], importance, format)

        def nearest(column: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
            chosen = codes(torch.from_numpy(column)[:, None, None], scales, zeros, format)[:, 0]
            return chosen[:, 0].numpy(), ((chosen.float() - zeros) * scales)[:, 0].numpy()

        chosen, values, errors = round_columns(block, corner, nearest)
        return Rounded((torch.from_numpy(chosen), scales, zeros), values), errors

    encoded, values = round_blocks(weight, moment, format.block, round_block)
    chosen, scales, zeros = (torch.cat(part, dim=1) for part in zip(*encoded, strict=True))
    padded = zeros.to(torch.uint8).repeat_interleave(format.block, dim=1)
    padded[:, : chosen.shape[1]] = chosen
    grouped = padded.reshape(len(padded), -1, format.block)
    return Rounded(_packed(grouped, scales, zeros, weight.shape[1], format), values)


def searched_values(weight: Tensor, importance: Tensor, format: BlockFormat) -> Tensor:
    """W (rows, columns) at the nearest codes of the scales that aware rounding would take, float32.

    Args:
        weight: W.
        importance: mean square of each input (columns,).
        format: the encoding.
    """
    import torch

    rows, columns = weight.shape
    padding = (0, format.blocks(columns) * format.block - columns)
    grouped = torch.nn.functional.pad(weight.float(), padding).reshape(rows, -1, format.block)
    weights = torch.nn.functional.pad(importance.float(), padding).reshape(-1, format.block)
    scales, zeros = searched_scales(grouped, weights, format)
    exact = (codes(grouped, scales, zeros, format).float() - zeros[..., None]) * scales[..., None]
    return exact.reshape(rows, -1)[:, :columns]


def dequantize(matrix: QuantizedMatrix) -> Tensor:
    """The float32 matrix (rows, columns) the runtime computes with."""
    import torch

    rows, blocks = matrix.scales.shape
    values = torch.empty((rows, matrix.in_features))
    for start in range(0, rows, ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        scales = matrix.scales[part]
        zeros = torch.full_like(scales, matrix.format.middle)
        if matrix.qzeros is not None:
            zeros = _unpacked(matrix.qzeros[part], matrix.bits)[:, :blocks].float()
        grouped = _unpacked(matrix.qweight[part], matrix.bits).reshape(len(scales), blocks, -1).float()
        exact = (grouped - zeros[..., None]) * scales[..., None]
        values[part] = exact.reshape(len(scales), -1)[:, : matrix.in_features]
    return values


def stack(matrices: Sequence[QuantizedMatrix]) -> QuantizedMatrix:
    """Matrices of one format and width, one above the other."""
    import torch

    first = matrices[0]
    if any((matrix.format, matrix.in_features) != (first.format, first.in_features) for matrix in matrices):
        raise ValueError("only matrices of one format and width can be stacked")
    zeros = [matrix.qzeros for matrix in matrices if matrix.qzeros is not None]
    return QuantizedMatrix(
        torch.cat([matrix.qweight for matrix in matrices]),
        torch.cat([matrix.scales for matrix in matrices]),
        torch.cat(zeros) if zeros else None,
        first.in_features,
        first.format,
    )


def block_scales(grouped: Tensor, format: BlockFormat, shrinking: float = 1.0) -> tuple[Tensor, Tensor]:
    """Scale and zero point of every block, float32 (rows, blocks) each, of weights (rows, blocks, block)."""
    import torch

    low, high = grouped.aminmax(dim=-1)
    if format.symmetric:
        largest = torch.where(high.abs() > low.abs(), high, low)
        return largest * shrinking / -format.middle, torch.full_like(low, format.middle)
    low, high = low.clamp(max=0) * shrinking, high.clamp(min=0) * shrinking
    scales = (high - low) / format.top
    safe = torch.where(scales == 0, 1.0, scales)
    return scales, _half_away(-low / safe).clamp(0, format.top)


def searched_scales(grouped: Tensor, importance: Tensor, format: BlockFormat) -> tuple[Tensor, Tensor]:
    """The scales and zero points, over all `SHRINKINGS`, whose rounding has the least error weighted by importance.

    Args:
        grouped: (rows, blocks, block).
        importance: mean square of the inputs (blocks, block); (block,) of all blocks alike.
        format: the encoding.
    """
    import torch

    scales, zeros = block_scales(grouped, format)
    least = torch.full_like(scales, torch.inf)
    for shrinking in SHRINKINGS:
        tried = block_scales(grouped, format, shrinking)
        values = (codes(grouped, *tried, format).float() - tried[1][..., None]) * tried[0][..., None]
        error = ((grouped - values).square() * importance).sum(dim=-1)
        better = error < least
        least = torch.where(better, error, least)
        scales, zeros = torch.where(better, tried[0], scales), torch.where(better, tried[1], zeros)
    return scales, zeros


def codes(grouped: Tensor, scales: Tensor, zeros: Tensor, format: BlockFormat) -> Tensor:
    """The nearest codes, uint8 (rows, blocks, block)."""
    import torch

    inverse = torch.where(scales == 0, 0.0, 1 / torch.where(scales == 0, 1.0, scales))
    wanted = _half_away(grouped * inverse[..., None] + zeros[..., None])
    return wanted.clamp(0, format.top).to(torch.uint8)


def _half_away(values: Tensor) -> Tensor:
    """C's roundf: halves away from zero."""
    import torch

    return torch.copysign((values.abs() + 0.5).floor(), values)


def _packed(grouped: Tensor, scales: Tensor, zeros: Tensor, columns: int, format: BlockFormat) -> QuantizedMatrix:
    import torch

    if format.bits == 4:
        grouped = grouped[..., ::2] | (grouped[..., 1::2] << 4)
    qzeros = None
    if not format.symmetric:
        qzeros = zeros.to(torch.uint8)
        if format.bits == 4:
            qzeros = torch.nn.functional.pad(qzeros, (0, qzeros.shape[1] % 2))
            qzeros = qzeros[:, ::2] | (qzeros[:, 1::2] << 4)
    return QuantizedMatrix(grouped, scales, qzeros, columns, format)


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """Codes, uint8 (..., n) or, of 4 bits, (..., 2 n)."""
    import torch

    if bits == 8:
        return packed
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
