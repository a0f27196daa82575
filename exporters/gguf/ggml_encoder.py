"""The runtime's own encoder and decoder of storage types: `ggml_quantize_chunk` and its reverse, through ctypes."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...converter.core.errors import InputError, ResourceError


def ggml_encode(
    library: Path, weights: NDArray[np.float32], type: str, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Encode rows as the runtime itself does.

    Args:
        library: a ggml shared library.
        weights: float32, finite; rows along the last axis are multiples of the type's block.
        type: "q4_k" and so on.
        importance: mean square of the input that each column meets (n,), finite and not negative; the encoder weighs
            its squared errors with it. None: all columns alike, which the smallest types refuse.

    Returns:
        Bytes, a row of them per row of weights.

    Raises:
        ResourceError: the library cannot be used.
        InputError: the library refused the rows.
        ValueError: the importance is not one of each column.
    """
    from gguf import GGMLQuantizationType

    ggml, number = _open(library), int(GGMLQuantizationType[type.upper()])
    rows = np.ascontiguousarray(weights, dtype=np.float32).reshape(-1, weights.shape[-1])
    encoded = np.empty((len(rows), ggml.ggml_row_size(number, rows.shape[1])), dtype=np.uint8)
    source, target = (array.ctypes.data_as(ctypes.c_void_p) for array in (rows, encoded))
    weighed = None
    if importance is not None:
        importance = np.ascontiguousarray(importance, dtype=np.float32)
        if importance.shape != rows.shape[1:]:
            raise ValueError(f"importance {importance.shape} of rows of {rows.shape[1]} weights")
        weighed = importance.ctypes.data_as(ctypes.c_void_p)
    elif ggml.ggml_quantize_requires_imatrix(number):  # it would end the process
        raise InputError(f"{type} cannot be encoded without an importance matrix")
    written = ggml.ggml_quantize_chunk(number, source, target, 0, len(rows), rows.shape[1], weighed)
    if written != encoded.nbytes:
        raise InputError(f"{library.name} wrote {written} bytes of {type} where {encoded.nbytes} were expected")
    return encoded.reshape(*weights.shape[:-1], encoded.shape[1])


def ggml_decode(library: Path, encoded: NDArray[np.uint8], type: str, columns: int) -> NDArray[np.float32]:
    """The weights that the runtime reads from encoded rows.

    Args:
        library: a ggml shared library.
        encoded: what `ggml_encode` returns, rows along the last axis.
        type: "q4_k" and so on; one that has blocks.
        columns: weights per row.

    Returns:
        float32, in the shape of the weights.

    Raises:
        ResourceError: the library cannot be used, or does not decode the type.
    """
    ggml = _open(library)
    try:
        decode = ggml["dequantize_row_" + type.replace("_k", "_K")]
    except AttributeError as error:
        raise ResourceError(f"{library}: does not decode {type} ({error})") from None
    decode.restype, decode.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    rows = np.ascontiguousarray(encoded)
    decoded = np.empty((*rows.shape[:-1], columns), dtype=np.float32)
    decode(*(array.ctypes.data_as(ctypes.c_void_p) for array in (rows, decoded)), decoded.size)
    return decoded


@cache
def _open(library: Path) -> ctypes.CDLL:
    """The library with the signatures of the functions used."""
    try:
        ggml = ctypes.CDLL(str(library))
        ggml.ggml_row_size.restype = ctypes.c_size_t
        ggml.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
        ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
        number, pointer, count = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
        ggml.ggml_quantize_chunk.argtypes = [number, pointer, pointer, count, count, count, pointer]
        ggml.ggml_quantize_requires_imatrix.restype, ggml.ggml_quantize_requires_imatrix.argtypes = (
            ctypes.c_bool,
            [number],
        )
    except (OSError, AttributeError) as error:
        raise ResourceError(f"{library}: not a usable ggml library ({error})") from None
    return ggml
