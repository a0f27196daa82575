"""Rounds the rows of a matrix so that their product with the inputs, not each weight, stays close.

GPTQ (ICLR 2023), for any format of blocks along a row: columns are rounded one after another, and what an error does
to the product is made up for by the columns that are still to come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DAMPING = 0.01  # of the mean of the moment's diagonal, added to it: GPTQ's

Encoded = TypeVar("Encoded")


@dataclass(frozen=True)
class Rounded(Generic[Encoded]):
    """A rounded matrix.

    Attributes:
        encoded: what a file holds.
        values: float32 (m, n), what the runtime reads from it.
    """

    encoded: Encoded
    values: Tensor


RoundBlock = Callable[[Tensor, Tensor, Tensor], tuple[Rounded[Encoded], Tensor]]
"""Weights (m, w), R (w, w) and importance (w,) of a block of columns -> the block rounded, errors in units of R_kk."""


def round_blocks(
    weights: Tensor, moment: Tensor, width: int, round_block: RoundBlock[Encoded]
) -> tuple[list[Encoded], Tensor]:
    """Round W to Q block of columns by block of columns, so that tr((W - Q) H (W - Q)^T) is small.

    Args:
        weights: W (m, n) on the CPU; the last block is narrower where `width` does not divide n.
        moment: H (n, n), second moment of the inputs, GPTQ's Hessian up to a factor; on any device, may be singular.
        width: columns of a block.
        round_block: rounds one.

    Returns:
        Every block as encoded, and Q (m, n), float32.
    """
    matrix, importance = (part.to(weights.device) for part in inverse_cholesky(moment))
    left = weights.float().clone()
    encoded: list[Encoded] = []
    values = torch.empty_like(left)
    for start in range(0, left.shape[1], width):
        block, rest = slice(start, start + width), slice(start + width, None)
        rounded, errors = round_block(left[:, block], matrix[block, block], importance[block])
        left[:, rest] -= errors @ matrix[block, rest]
        encoded.append(rounded.encoded)
        values[:, block] = rounded.values
    return encoded, values


def inverse_cholesky(moment: Tensor) -> tuple[Tensor, Tensor]:
    """R (n, n), upper triangular with R^T R = H^-1, and the diagonal of H (n,); float32, H damped.

    An error e in column k, in units of R_kk, is made up for by taking e R_kj from every later column j.
    """
    damped = moment.double().clone()
    mean = damped.diagonal().mean()
    damped.diagonal().add_(DAMPING * mean if mean > 0 else 1.0)  # inputs that are always zero: nothing matters
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float(), damped.diagonal().float()


Column = NDArray[np.float32]


def round_columns(
    weights: Tensor, cholesky: Tensor, nearest: Callable[[Column], tuple[NDArray[np.uint8], Column]]
) -> tuple[NDArray[np.uint8], Tensor, Tensor]:
    """Round one block column by column, at fixed scales.

    Args:
        weights: (m, w).
        cholesky: R (w, w) of the block.
        nearest: one weight of every row (m,) -> the nearest codes (m,) and what they stand for (m,).

    Returns:
        Codes (m, w), values (m, w), and errors (m, w) in units of R_kk.
    """
    left = weights.T.contiguous().numpy()  # a column is a row here: contiguous
    chosen, values, errors = np.empty_like(left, dtype=np.uint8), np.empty_like(left), np.empty_like(left)
    matrix = cholesky.numpy()
    for k in range(len(left)):
        chosen[k], values[k] = nearest(left[k])
        errors[k] = (left[k] - values[k]) / matrix[k, k]
        left[k + 1 :] -= matrix[k, k + 1 :, None] * errors[k]
    return np.ascontiguousarray(chosen.T), torch.from_numpy(values.T.copy()), torch.from_numpy(errors.T.copy())
