"""Rounds the rows of a matrix to a storage type of ggml: to the nearest, or so that their product stays close."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..rounding.gptq import Rounded, round_blocks, round_columns
from .codes import CODES
from .ggml_encoder import ggml_decode, ggml_encode
from .types import storage_type

PLAIN = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
Rows = Rounded[NDArray[np.uint8]]
"""A matrix as bytes (m, bytes per row), what a GGUF file holds."""


def round_nearest(weights: Tensor, type: str, library: Path, importance: Tensor | None = None) -> Rows:
    """Round every block by itself, as llama.cpp's quantizer does.

    Args:
        weights: (m, n), rows multiples of the type's block.
        type: a storage type that ggml encodes.
        library: a ggml library.
        importance: mean square of each input (n,), where it is known.
    """
    rows = weights.float().numpy()
    encoded = ggml_encode(library, rows, type, None if importance is None else importance.float().numpy())
    return Rounded(encoded, torch.from_numpy(ggml_decode(library, encoded, type, rows.shape[1])))


def round_rows(weights: Tensor, moment: Tensor, type: str, library: Path) -> Rows:
    """Round W to Q so that tr((W - Q) H (W - Q)^T) is small.

    Types of a scale and a code per weight (`codes.CODES`) are rounded column by column, at the scales that ggml gives
    each block as it is when its turn comes. Of the others, whose blocks hold scales of scales or points of a lattice,
    ggml rounds a whole block of columns, and its error moves on to the following blocks only.

    Args:
        weights: W (m, n), rows multiples of the type's block.
        moment: H (n, n), second moment of the inputs; may be singular.
        type: a storage type; weights of one without blocks are rounded to the nearest.
        library: a ggml library.
    """
    if type in PLAIN:
        stored = weights.to(PLAIN[type])
        return Rounded(stored.contiguous().view(torch.uint8).numpy(), stored.float())

    def round_block(block: Tensor, corner: Tensor, importance: Tensor) -> tuple[Rows, Tensor]:
        nearest = round_nearest(block, type, library, importance)
        if type in CODES:
            return _round_codes(block, corner, nearest, type)
        # the errors that, each made up for in its turn, sum up to the block's
        return nearest, torch.linalg.solve_triangular(corner, block - nearest.values, upper=True, left=False)

    encoded, values = round_blocks(weights, moment, storage_type(type).block, round_block)
    return Rounded(np.concatenate(encoded, axis=1), values)


def _round_codes(weights: Tensor, cholesky: Tensor, nearest: Rows, type: str) -> tuple[Rows, Tensor]:
    """Round one block (m, 32) column by column at the scales of `nearest`; also the errors (m, 32) in units of R_kk."""
    codes = CODES[type]
    scale, offset = codes.scales(nearest.encoded)

    def closest(column: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        chosen = codes.nearest(column, scale, offset)
        return chosen, codes.values(chosen, scale, offset)

    chosen, values, errors = round_columns(weights, cholesky, closest)
    return Rounded(codes.pack(chosen, nearest.encoded), values), errors
