"""The runtime's own encoder of the types that gguf-py only decodes: `ggml_quantize_chunk`, through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...converter.errors import InputError, ResourceError

FindLibrary = Callable[[], Path]
"""Gives the path of a ggml library (`libggml-base`), building it where there is none; called when it is needed."""


def ggml_encode(library: Path, weights: NDArray[np.float32], type: str) -> NDArray[np.uint8]:
    """Encode rows as the runtime itself does, without an importance matrix.

    Args:
        library: a ggml shared library.
        weights: float32, finite; rows along the last axis are multiples of the type's block.
        type: "q4_k" and so on.

    Returns:
        Bytes, a row of them per row of weights.

    Raises:
        ResourceError: the library cannot be used.
        InputError: the library refused the rows.
    """
    from gguf import GGMLQuantizationType

    ggml, number = _open(library), int(GGMLQuantizationType[type.upper()])
    rows = np.ascontiguousarray(weights, dtype=np.float32).reshape(-1, weights.shape[-1])
    encoded = np.empty((len(rows), ggml.ggml_row_size(number, rows.shape[1])), dtype=np.uint8)
    source, target = (array.ctypes.data_as(ctypes.c_void_p) for array in (rows, encoded))
    written = ggml.ggml_quantize_chunk(number, source, target, 0, len(rows), rows.shape[1], None)
    if written != encoded.nbytes:
        raise InputError(f"{library.name} wrote {written} bytes of {type} where {encoded.nbytes} were expected")
    return encoded.reshape(*weights.shape[:-1], encoded.shape[1])


@cache
def _open(library: Path) -> ctypes.CDLL:
    """The library with the signatures of the two functions used."""
    try:
        ggml = ctypes.CDLL(str(library))
        ggml.ggml_row_size.restype = ctypes.c_size_t
        ggml.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
        ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
        number, pointer, count = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
        ggml.ggml_quantize_chunk.argtypes = [number, pointer, pointer, count, count, count, pointer]
    except (OSError, AttributeError) as error:
        raise ResourceError(f"{library}: not a usable ggml library ({error})") from None
    return ggml
