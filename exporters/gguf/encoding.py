"""Weights -> the bytes a file holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...converter.core.errors import InputError, UsageError
from .ggml_encoder import ggml_encode
from .types import INTEGERS, storage_type

GGUF_PY = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""The types that gguf-py encodes; the others are left to ggml."""


def encode(
    name: str,
    weights: NDArray[np.float32] | NDArray[np.int32],
    type: str,
    library: Path | None = None,
    importance: NDArray[np.float32] | None = None,
) -> NDArray[np.generic]:
    """Encode one tensor for the file.

    Args:
        name: for errors.
        weights: float32, any shape; rows along the last axis. A permutation: int32.
        type: one that the rows fit, see `types.fitting_type`.
        library: of ggml, where `needs_ggml` says so.
        importance: of each column (n,), for the types that weigh their errors; ggml encodes those then.

    Returns:
        A C-contiguous array whose bytes are what the file holds.

    Raises:
        InputError: an entry is not finite, or does not fit the type's range.
        UsageError: the type needs an importance, and there is none.
        ValueError: it needs ggml, and no library was given.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if type == INTEGERS:
        return np.ascontiguousarray(weights, dtype=np.int32)
    values = np.ascontiguousarray(weights, dtype=np.float32)
    check_range(name, values, type)
    if importance is None and storage_type(type).importance:
        raise UsageError(f"tensor {name!r}: {type} wants an importance matrix")
    if not needs_ggml(type, weighed=importance is not None):
        return np.ascontiguousarray(quantize(values, GGMLQuantizationType[type.upper()]))
    if library is None:
        raise ValueError(f"{type} is encoded by ggml, whose library was not given")
    return ggml_encode(library, values, type, importance)


def needs_ggml(type: str, *, weighed: bool) -> bool:
    """Whether ggml encodes a type, and not gguf-py.

    Args:
        type: of the tensor.
        weighed: whether its columns have an importance.
    """
    if type == INTEGERS:
        return False
    return type not in GGUF_PY or (weighed and storage_type(type).block > 1)


def check_range(name: str, values: NDArray[np.float32], type: str) -> None:
    """Refuse what a type cannot hold.

    Raises:
        InputError: an entry is not finite, or does not fit the type's range.
    """
    largest = float(max(-values.min(initial=0.0), values.max(initial=0.0)))  # no copy of a large embedding
    if not np.isfinite(largest):
        raise InputError(f"tensor {name!r} holds a value that is not finite")
    if type not in ("f32", "bf16") and largest > float(np.finfo(np.float16).max) * storage_type(type).largest:
        raise InputError(f"tensor {name!r} holds {largest:g}, beyond the range of {type}; export as bf16 or f32")
