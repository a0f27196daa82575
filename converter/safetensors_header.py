"""The header of a safetensors file, with nothing in it taken on trust."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from .errors import InputError

MAX_HEADER_BYTES = 100_000_000
_BY_WIDTH = {8: "F64 I64 U64", 4: "F32 I32 U32", 2: "F16 BF16 I16 U16", 1: "I8 U8 BOOL F8_E4M3 F8_E5M2"}
WIDTHS = {dtype: width for width, dtypes in _BY_WIDTH.items() for dtype in dtypes.split()}


def read_header(path: Path) -> dict[str, Any]:
    """Parse a header and check every tensor against the file's size before anything is allocated.

    Returns:
        Tensor name -> {"dtype", "shape", "data_offsets"}.

    Raises:
        InputError: not a safetensors file, truncated, or a tensor's bytes are not those of its shape and dtype.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
            raise InputError(f"{path}: not a safetensors file, or truncated")
        text = file.read(length)
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            _check_entry(path, name, entry, size - 8 - length)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(f"{path}: damaged safetensors header") from None
    return header


def _check_entry(path: Path, name: str, entry: Any, available: int) -> None:
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= available:
        raise InputError(f"{path}: truncated: tensor {name!r} lies beyond the end of the file")
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    if any(n < 0 for n in shape):
        raise ValueError(shape)
    needed = prod(shape) * WIDTHS.get(dtype, 0)
    if dtype in WIDTHS and needed != end - begin:
        raise InputError(
            f"{path}: tensor {name!r} has {end - begin} bytes, but its shape {shape} in {dtype} takes {needed}"
        )
