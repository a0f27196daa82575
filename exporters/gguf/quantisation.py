"""Storage types: which one a tensor gets, how many bytes it takes, and the encoding itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from ...converter.errors import InputError, UsageError
from ...converter.layouts import PERM_SUFFIX

ALIGNMENT = 32  # bytes; every tensor starts at a multiple


@dataclass(frozen=True)
class StorageType:
    """A ggml type: `block` weights of a row take `bytes` bytes; file_type is llama.cpp's number for such files."""

    block: int
    bytes: int
    file_type: int


TYPES = {
    "f32": StorageType(1, 4, 0),
    "f16": StorageType(1, 2, 1),
    "q8_0": StorageType(32, 34, 7),
    "bf16": StorageType(1, 2, 32),
}
FALLBACK = "f16"  # for rows that do not divide into blocks
INTEGERS = "i32"  # permutations
INTEGER_BYTES = 4


def storage_type(quantisation: str) -> StorageType:
    """Look up a type by name.

    Raises:
        UsageError: unknown; names those there are.
    """
    if quantisation not in TYPES:
        raise UsageError(f"unknown GGUF quantisation {quantisation!r}; choose from {', '.join(TYPES)}")
    return TYPES[quantisation]


def choose_type(name: str, shape: tuple[int, ...], quantisation: str) -> str:
    """The type one tensor is stored in.

    Norms and biases (one dimension) stay F32, permutations are integers. A matrix whose rows do not divide into the
    type's blocks gets F16; `fallbacks` lists these so that they are reported.

    Args:
        name: tensor name.
        shape: row-major; the last entry is the row length (r for U, n for V).
        quantisation: the type asked for.

    Raises:
        UsageError: unknown type.
        InputError: a tensor without dimensions.
    """
    if not shape:
        raise InputError(f"tensor {name!r} has no dimensions")
    asked = storage_type(quantisation)
    if name.endswith(PERM_SUFFIX):
        return INTEGERS
    if len(shape) == 1:
        return "f32"
    return quantisation if shape[-1] % asked.block == 0 else FALLBACK


def tensor_bytes(shape: tuple[int, ...], type: str) -> int:
    """Bytes of one tensor's data, without padding.

    Raises:
        InputError: the row length is not a multiple of the type's block.
        UsageError: unknown type.
    """
    if type == INTEGERS:
        return prod(shape) * INTEGER_BYTES
    stored = storage_type(type)
    row = shape[-1] if shape else 1
    if row % stored.block:
        raise InputError(f"rows of {row} weights do not divide into {type} blocks of {stored.block}")
    return prod(shape) // stored.block * stored.bytes


def predict_bytes(shapes: Mapping[str, tuple[int, ...]], quantisation: str) -> int:
    """Bytes of a file's tensor data, alignment included, under `choose_type`. Metadata and vocabulary come on top.

    Raises:
        UsageError: unknown type.
    """
    return sum(padded(tensor_bytes(shape, choose_type(name, shape, quantisation))) for name, shape in shapes.items())


def fallbacks(shapes: Mapping[str, tuple[int, ...]], quantisation: str) -> dict[str, str]:
    """The matrices that do not get the type asked for, and the type they get instead."""
    chosen = {name: choose_type(name, shape, quantisation) for name, shape in shapes.items() if len(shape) > 1}
    return {name: type for name, type in chosen.items() if type != quantisation}


def padded(size: int) -> int:
    """`size` rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def encode(name: str, weights: NDArray[np.float32] | NDArray[np.int32], type: str) -> NDArray[np.generic]:
    """Encode one tensor for the file.

    Args:
        name: for errors.
        weights: float32, any shape; rows along the last axis. A permutation: int32.
        type: as `choose_type` gives it.

    Returns:
        A C-contiguous array whose bytes are what the file holds.

    Raises:
        InputError: an entry is not finite, or does not fit the type's range.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if type == INTEGERS:
        return np.ascontiguousarray(weights, dtype=np.int32)
    largest = float(np.abs(weights).max(initial=0.0))
    if not np.isfinite(largest):
        raise InputError(f"tensor {name!r} holds a value that is not finite")
    limit = float(np.finfo(np.float16).max) * (127 if type == "q8_0" else 1)
    if type in ("f16", "q8_0") and largest > limit:
        raise InputError(f"tensor {name!r} holds {largest:g}, beyond the range of {type}; export as bf16 or f32")
    encoded = quantize(np.ascontiguousarray(weights, dtype=np.float32), GGMLQuantizationType[type.upper()])
    return np.ascontiguousarray(encoded)
