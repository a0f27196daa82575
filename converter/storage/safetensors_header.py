"""The header of a safetensors file, with nothing in it taken on trust."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from .documents import parse_json, shown

MAX_HEADER_BYTES = 100_000_000
_BY_WIDTH = {
    8: "F64 I64 U64 C64",
    4: "F32 I32 U32",
    2: "F16 BF16 I16 U16",
    1: "I8 U8 BOOL F8_E4M3 F8_E5M2 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ",
}
WIDTHS = {dtype: width for width, dtypes in _BY_WIDTH.items() for dtype in dtypes.split()}


def read_header(path: Path) -> dict[str, Any]:
    """Parse a header and check every tensor against the file's size before anything is allocated.

    Returns:
        Tensor name -> {"dtype", "shape", "data_offsets"}.

    Raises:
        InputError: not a safetensors file, truncated, a tensor's bytes are not those of its shape and dtype, or the
            tensors do not follow one another without gap or overlap, as the format requires.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
            raise InputError(f"{path}: not a safetensors file, or truncated")
        text = file.read(length)
    try:
        header: dict[str, Any] = parse_json(text.decode("utf-8"))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            name.encode("utf-8")  # JSON can spell what is no text
            _check_entry(path, name, entry, size - 8 - length)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{path}: damaged safetensors header") from None
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["data_offsets"][0] != end:
            raise InputError(f"{path}: tensor {shown(name)} does not begin where the one before it ends")
        end = entry["data_offsets"][1]
    return header


def _check_entry(path: Path, name: str, entry: Any, available: int) -> None:
    begin, end = entry["data_offsets"]
    shape, dtype = entry["shape"], entry["dtype"]
    if not isinstance(shape, list) or len(shape) > 16 or any(type(n) is not int for n in (*shape, begin, end)):
        raise ValueError(shape)
    if any(not 0 <= n < 2**63 for n in shape):
        raise ValueError(shape)
    if not 0 <= begin <= end <= available:
        raise InputError(f"{path}: truncated: tensor {shown(name)} lies beyond the end of the file")
    if dtype not in WIDTHS:
        raise InputError(f"{path}: tensor {shown(name)} is of unknown type {shown(dtype)}")
    needed = prod(shape) * WIDTHS[dtype]
    if needed != end - begin:
        raise InputError(
            f"{path}: tensor {shown(name)} has {end - begin} bytes, but its shape {shown(tuple(shape))} in {dtype} "
            f"takes {shown(needed)}"
        )
