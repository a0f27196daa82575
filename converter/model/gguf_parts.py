"""A GGUF file that lies in parts, as llama.cpp's gguf-split cuts it, put together again."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from ..core.errors import InputError
from ..storage.gguf_header import DEFAULT_ALIGNMENT, MAGIC, Header, StoredTensor, read_header
from .places import parts_beside

NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
VERSION = 3
STEP = 2**20


def gguf_parts(path: Path) -> tuple[Path, ...]:
    """The files that a GGUF file is one of, in order; itself where it is whole.

    Raises:
        InputError: a part is missing, or is none of this file.
    """
    header = read_header(path)
    count = header.metadata.get(COUNT, 1)
    if count == 1:
        return (path,)
    number = header.metadata.get(NUMBER)
    if type(count) is not int or type(number) is not int or not 0 <= number < count:
        raise InputError(f"{path}: {COUNT} is {count!r} and {NUMBER} {number!r}, which is no part of a whole")
    return parts_beside(path, number + 1, count)


def read_whole(path: Path) -> Header:
    """The header of a GGUF file, of one in parts that of the whole: metadata of the first part, tensors of all.

    Offsets of tensors are those in their own part.

    Args:
        path: the file, or any part.

    Raises:
        InputError: damaged, a part is missing, or is none of this file.
    """
    parts = gguf_parts(path)
    headers = [read_header(part) for part in parts]
    if len(headers) == 1:
        return headers[0]
    _check(parts, headers)
    metadata = {key: value for key, value in headers[0].metadata.items() if key not in (NUMBER, COUNT, TENSORS)}
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    return replace(headers[0], metadata=metadata, tensors=tensors, size=sum(header.size for header in headers))


def join_parts(parts: Sequence[Path], out: Path) -> None:
    """Write the whole file: the metadata of the first part, the tensors of all.

    Raises:
        InputError: a file is no part of the same whole, tensors are missing or come twice.
    """
    headers = [read_header(part) for part in parts]
    _check(parts, headers)
    first = headers[0]
    kept = [place for key, place in first.entries.items() if key not in (NUMBER, COUNT, TENSORS)]
    tensors = [(part, tensor) for part, header in zip(parts, headers, strict=True) for tensor in header.tensors]
    with out.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(kept)))
        with parts[0].open("rb") as source:
            for begin, end in kept:
                _copy(source, begin, end - begin, file)
        alignment = int(first.metadata.get("general.alignment", DEFAULT_ALIGNMENT))
        offset = 0
        for _, tensor in tensors:
            file.write(_listed(tensor, offset))
            offset += -(-tensor.bytes // alignment) * alignment
        for part, tensor in tensors:
            file.write(bytes(-file.tell() % alignment))
            with part.open("rb") as source:
                _copy(source, tensor.offset, tensor.bytes, file)


def _check(parts: Sequence[Path], headers: Sequence[Header]) -> None:
    seen: dict[str, Path] = {}
    wanted = headers[0].metadata.get(TENSORS)
    for number, (part, header) in enumerate(zip(parts, headers, strict=True)):
        if header.big_endian:
            raise InputError(f"{part}: is big-endian and in parts; put it together first, with gguf-split --merge")
        said = header.metadata.get(NUMBER), header.metadata.get(COUNT), header.metadata.get(TENSORS)
        if said != (number, len(parts), wanted):
            raise InputError(
                f"{part}: says that it is part {said[0]} of {said[1]} with {said[2]} tensors, beside "
                f"{parts[0].name} it must be part {number} of {len(parts)} with {wanted}"
            )
        for tensor in header.tensors:
            if tensor.name in seen:
                raise InputError(f"{part}: holds tensor {tensor.name!r}, and so does {seen[tensor.name].name}")
            seen[tensor.name] = part
    if wanted is not None and wanted != len(seen):
        raise InputError(f"{parts[0]}: its parts hold {len(seen)} tensors, {TENSORS} says {wanted}")


def _listed(tensor: StoredTensor, offset: int) -> bytes:
    """A tensor's entry: name, dimensions from the last on, type, offset in the data."""
    from gguf import GGMLQuantizationType

    name = tensor.name.encode()
    numbers = (*tensor.shape[::-1], int(GGMLQuantizationType[tensor.type.upper()]), offset)
    shape = f"<Q{len(name)}sI{len(tensor.shape)}QIQ"
    return struct.pack(shape, len(name), name, len(tensor.shape), *numbers)


def _copy(source: BinaryIO, begin: int, count: int, out: BinaryIO) -> None:
    source.seek(begin)
    while count:
        piece = source.read(min(count, STEP))
        if not piece:
            raise InputError("a part of a GGUF file ends while it is read")
        out.write(piece)
        count -= len(piece)
