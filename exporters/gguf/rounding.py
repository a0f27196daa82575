"""Rounds the rows of a matrix to a storage type so that their product with the inputs, not each weight, stays close.

GPTQ (ICLR 2023), in the block formats of ggml: columns are rounded one after another, and what an error does to
the product is made up for by the columns that are still to come.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .codes import BLOCK, CODES
from .ggml_encoder import ggml_decode, ggml_encode
from .types import storage_type

PLAIN = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
DAMPING = 0.01  # of the mean of the moment's diagonal, added to it: GPTQ's


@dataclass(frozen=True)
class Rounded:
    """A rounded matrix.

    Attributes:
        encoded: bytes (m, bytes per row), what a file holds.
        values: float32 (m, n), what the runtime reads from them.
    """

    encoded: NDArray[np.uint8]
    values: Tensor


def round_nearest(weights: Tensor, type: str, library: Path, importance: Tensor | None = None) -> Rounded:
    """Round every block by itself, as llama.cpp's quantiser does.

    Args:
        weights: (m, n), rows multiples of the type's block.
        type: a storage type that ggml encodes.
        library: a ggml library.
        importance: mean square of each input (n,), where it is known.
    """
    rows = weights.float().numpy()
    encoded = ggml_encode(library, rows, type, None if importance is None else importance.float().numpy())
    return Rounded(encoded, torch.from_numpy(ggml_decode(library, encoded, type, rows.shape[1])))


def round_rows(weights: Tensor, moment: Tensor, type: str, library: Path) -> Rounded:
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
    feedback, importance = _feedback(moment)
    left, width = weights.float().clone(), storage_type(type).block
    encoded, values = [], torch.empty_like(left)
    for start in range(0, left.shape[1], width):
        block, rest = slice(start, start + width), slice(start + width, None)
        corner, beside = feedback[block, block], feedback[block, rest]
        nearest = round_nearest(left[:, block], type, library, importance[block])
        if type in CODES:
            rounded, errors = _round_codes(left[:, block], corner, nearest, type)
        else:
            rounded = nearest
            # the errors that, each made up for in its turn, sum up to the block's
            errors = torch.linalg.solve_triangular(corner, left[:, block] - nearest.values, upper=True, left=False)
        left[:, rest] -= errors @ beside
        encoded.append(rounded.encoded)
        values[:, block] = rounded.values
    return Rounded(np.concatenate(encoded, axis=1), values)


def _feedback(moment: Tensor) -> tuple[Tensor, Tensor]:
    """R (n, n), upper triangular with R^T R = H^-1, and the diagonal of H (n,); float32, H damped.

    An error e in column k, in units of R_kk, is made up for by taking e R_kj from every later column j.
    """
    damped = moment.double().clone()
    mean = damped.diagonal().mean()
    damped.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)  # inputs that are always zero: nothing matters
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float(), damped.diagonal().float()


def _round_codes(weights: Tensor, feedback: Tensor, nearest: Rounded, type: str) -> tuple[Rounded, Tensor]:
    """Round one block (m, 32) column by column at the scales of `nearest`; also the errors (m, 32) in units of R_kk."""
    codes, encoded = CODES[type], nearest.encoded
    scale, offset = codes.scales(encoded)
    left = weights.T.contiguous().numpy()  # a column is a row here: contiguous
    chosen, values, errors = np.empty_like(left, dtype=np.uint8), np.empty_like(left), np.empty_like(left)
    matrix = feedback.numpy()
    for k in range(BLOCK):
        chosen[k] = codes.nearest(left[k], scale, offset)
        values[k] = codes.values(chosen[k], scale, offset)
        errors[k] = (left[k] - values[k]) / matrix[k, k]
        left[k + 1 :] -= matrix[k, k + 1 :, None] * errors[k]
    packed = codes.pack(np.ascontiguousarray(chosen.T), encoded)
    return Rounded(packed, torch.from_numpy(values.T.copy())), torch.from_numpy(errors.T.copy())
