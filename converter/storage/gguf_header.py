"""A GGUF file's header, read with every count, type, name, shape and offset checked before anything is allocated."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from ..core.errors import InputError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_NAME = 64  # ggml's GGML_MAX_NAME, the closing zero included
DEFAULT_ALIGNMENT = 32
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
UINT32, STRING, ARRAY = 4, 8, 9
ALIGNMENT_KEY = "general.alignment"
MAX_DEPTH = 4  # of arrays in arrays
MAX_VALUES = 2**24  # in all arrays together: tens of times what the largest vocabulary has


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: row-major shape, type ("q4_k"), where its data begin in the file, and how many bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class Header:
    """All that a file says before its data.

    Attributes:
        metadata: key -> value; an array becomes a list.
        tensors: in the order listed.
        size: of the file in bytes.
        entries: key -> where its entry, key and value, begins and ends in the file.
        big_endian: whether its numbers are.
    """

    metadata: Mapping[str, Any]
    tensors: tuple[StoredTensor, ...]
    size: int
    entries: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    big_endian: bool = False


def read_header(path: Path) -> Header:
    """Read and check a header, in a file of this project or any other.

    Raises:
        InputError: missing, not GGUF, truncated or damaged; one line that says where.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    size = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise InputError(f"{path}: not a GGUF file")
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _header(_Cursor(data, size, len(MAGIC)), size)
        except _Damage as damage:
            raise InputError(f"{path}: damaged or truncated GGUF file: {damage}") from None


class _Damage(Exception):
    """What is wrong, in words that end the line."""


class _Cursor:
    """Reads values one after another and never beyond the end."""

    def __init__(self, data: mmap.mmap, size: int, at: int) -> None:
        self._data, self._size, self.at = data, size, at
        self.order = "<"
        self.values = 0

    @property
    def left(self) -> int:
        """Bytes after the cursor."""
        return self._size - self.at

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes."""
        if count > self.left:
            raise _Damage(f"{what} wants {count:,} bytes at {self.at:,}, the file ends at {self._size:,}")
        self.at += count
        return self._data[self.at - count : self.at]

    def number(self, code: str, what: str) -> Any:
        """The next number; `code` as in `struct`."""
        return struct.unpack(self.order + code, self.take(struct.calcsize("=" + code), what))[0]

    def count(self, smallest: int, what: str) -> int:
        """A number of things, each of which takes at least `smallest` bytes of what is left."""
        count = int(self.number("Q", what))
        if count * smallest > self.left:
            raise _Damage(f"{what} is {count:,}, more than fit into the {self.left:,} bytes left")
        return count

    def values_of(self, smallest: int, what: str) -> int:
        """The length of an array, see `count`; a value takes many times its bytes once it is read."""
        count = self.count(smallest, what)
        self.values += count
        if self.values > MAX_VALUES:
            raise _Damage(f"{what} brings the metadata to {self.values:,} values; no more than {MAX_VALUES:,} are read")
        return count

    def text(self, what: str) -> str:
        """A string with its length before it. What is no UTF-8 is replaced: vocabularies hold such."""
        return self.take(self.count(1, f"the length of {what}"), what).decode("utf-8", "replace")

    def name(self, what: str) -> str:
        """A string that names something: UTF-8, and nothing else."""
        begin = self.at
        raw = self.take(self.count(1, f"the length of {what}"), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise _Damage(f"{what} at {begin:,} is not UTF-8 ({raw[:20]!r})") from None


def _header(cursor: _Cursor, size: int) -> Header:
    version = cursor.number("I", "the version")
    if version & 0xFFFF == 0:
        cursor.order = ">"
        version = int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in VERSIONS:
        raise _Damage(f"version {version}; known are {', '.join(map(str, VERSIONS))}")
    tensors = cursor.count(8 + 4 + 4 + 8, "the number of tensors")
    keys = cursor.count(8 + 4 + 1, "the number of metadata keys")
    metadata: dict[str, Any] = {}
    entries: dict[str, tuple[int, int]] = {}
    for _ in range(keys):
        begin = cursor.at
        key = cursor.name("a metadata key")
        if not key:
            raise _Damage("a metadata key has no name")
        if key in metadata:
            raise _Damage(f"metadata key {key!r} occurs twice")
        kind = cursor.number("I", f"the type of {key!r}")
        if key == ALIGNMENT_KEY and kind != UINT32:
            raise _Damage(f"{ALIGNMENT_KEY} has type {kind}, it must be a u32")
        metadata[key] = _value(cursor, kind, key)
        entries[key] = begin, cursor.at
    alignment = metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if alignment < 1 or alignment & (alignment - 1):
        raise _Damage(f"{ALIGNMENT_KEY} is {alignment!r}, no power of two")
    listed = [_tensor(cursor) for _ in range(tensors)]
    start = -(-cursor.at // alignment) * alignment
    placed = _placed(listed, start, alignment, size)
    return Header(metadata, placed, size, entries, cursor.order == ">")


def _value(cursor: _Cursor, kind: int, key: str, depth: int = 0) -> Any:
    if kind in SCALARS:
        return cursor.number(SCALARS[kind], f"the value of {key!r}")
    if kind == STRING:
        return cursor.text(f"the value of {key!r}")
    if kind != ARRAY or depth == MAX_DEPTH:
        raise _Damage(f"metadata key {key!r} has unknown type {kind}")
    kind = cursor.number("I", f"the type of {key!r}")
    if kind not in SCALARS:
        count = cursor.values_of(8, f"the length of {key!r}")
        return [_value(cursor, kind, key, depth + 1) for _ in range(count)]
    width = struct.calcsize("=" + SCALARS[kind])
    count = cursor.values_of(width, f"the length of {key!r}")
    data = cursor.take(count * width, f"the value of {key!r}")
    return list(struct.unpack(f"{cursor.order}{count}{SCALARS[kind]}", data))


def _tensor(cursor: _Cursor) -> StoredTensor:
    """One entry of the list of tensors; its offset counts from the start of the data."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    name = cursor.name("a tensor's name")
    if not name or len(name.encode("utf-8")) >= MAX_NAME:
        raise _Damage(f"a tensor's name has {len(name)} letters ({name[:20]!r}...)" if name else "a tensor has no name")
    dimensions = cursor.number("I", f"the number of dimensions of {name!r}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise _Damage(f"tensor {name!r} has {dimensions} dimensions")
    shape = tuple(cursor.number("Q", f"a dimension of {name!r}") for _ in range(dimensions))[::-1]
    number = cursor.number("I", f"the type of {name!r}")
    try:
        kind = GGMLQuantizationType(number)
    except ValueError:
        raise _Damage(f"tensor {name!r} has unknown type {number}") from None
    block, width = GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % block:
        said = " x ".join(f"{n:,}" for n in shape)
        raise _Damage(f"tensor {name!r} has shape {said}, which {kind.name} cannot have (blocks of {block})")
    offset = cursor.number("Q", f"the offset of {name!r}")
    return StoredTensor(name, shape, kind.name.lower(), offset, prod(shape) // block * width)


def _placed(listed: Iterable[StoredTensor], start: int, alignment: int, size: int) -> tuple[StoredTensor, ...]:
    """The tensors with offsets in the file: inside it, aligned, and without gaps, as ggml requires."""
    placed: dict[str, StoredTensor] = {}
    for tensor in listed:
        begin = start + tensor.offset
        if tensor.name in placed:
            raise _Damage(f"tensor {tensor.name!r} occurs twice")
        if tensor.offset % alignment:
            raise _Damage(f"tensor {tensor.name!r} begins at {begin:,}, which is not aligned to {alignment}")
        if begin + tensor.bytes > size:
            said = " x ".join(f"{n:,}" for n in tensor.shape)
            raise _Damage(
                f"tensor {tensor.name!r} ({said} {tensor.type}) ends at {begin + tensor.bytes:,}, the file at {size:,}"
            )
        placed[tensor.name] = StoredTensor(tensor.name, tensor.shape, tensor.type, begin, tensor.bytes)
    in_order = sorted(placed.values(), key=lambda tensor: tensor.offset)
    for first, second in pairwise(in_order):
        if first.offset + first.bytes > second.offset:
            raise _Damage(f"tensors {first.name!r} and {second.name!r} overlap")
    expected = start
    for tensor in placed.values():
        if tensor.offset != expected:
            raise _Damage(
                f"tensor {tensor.name!r} begins at {tensor.offset:,}, after those before it comes {expected:,}"
            )
        expected += -(-tensor.bytes // alignment) * alignment
    return tuple(placed.values())
