"""Storage types: how many bytes each takes, which rows it fits, and the fallback where it does not."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ...converter.core.errors import InputError, UsageError
from ...converter.core.nearest import nearest

ALIGNMENT = 32  # bytes; every tensor starts at a multiple
INTEGERS = "i32"  # permutations
INTEGER_BYTES = 4


@dataclass(frozen=True)
class StorageType:
    """A ggml type.

    Attributes:
        block: weights of a row that are stored together; rows must be multiples of it.
        bytes: of a block.
        file_type: llama.cpp's number for files mostly of this type.
        fallback: for rows that are no multiple, a type of equal or higher precision; "" where all rows fit.
        largest: how far beyond float16 a weight may lie; types with a float16 scale store weight / largest.
        importance: rows must come with an importance matrix: the type is of no use without, or cannot be encoded.
    """

    block: int
    bytes: int
    file_type: int
    fallback: str = ""
    largest: float = 1.0
    importance: bool = False

    @property
    def bits(self) -> float:
        """Bits per weight."""
        return 8 * self.bytes / self.block


TYPES = {
    "f32": StorageType(1, 4, 0),
    "f16": StorageType(1, 2, 1),
    "bf16": StorageType(1, 2, 32),
    "q8_0": StorageType(32, 34, 7, "f16", largest=127.0),
    "q6_k": StorageType(256, 210, 18, "q8_0"),
    "q5_k": StorageType(256, 176, 16, "q5_1"),
    "q5_1": StorageType(32, 24, 9, "f16"),
    "q5_0": StorageType(32, 22, 8, "f16"),
    "q4_k": StorageType(256, 144, 14, "q5_0"),
    "q4_1": StorageType(32, 20, 3, "f16"),
    "q4_0": StorageType(32, 18, 2, "f16"),
    "iq4_nl": StorageType(32, 18, 25, "f16"),
    "iq4_xs": StorageType(256, 136, 30, "iq4_nl"),
    "q3_k": StorageType(256, 110, 11, "iq4_nl"),
    "iq3_s": StorageType(256, 110, 26, "iq4_nl", importance=True),
    "iq3_xxs": StorageType(256, 98, 23, "iq4_nl", importance=True),
    "q2_k": StorageType(256, 84, 10, "iq4_nl"),
    "iq2_s": StorageType(256, 82, 28, "iq4_nl", importance=True),
    "iq2_xs": StorageType(256, 74, 20, "iq4_nl", importance=True),
    "iq2_xxs": StorageType(256, 66, 19, "iq4_nl", importance=True),
}
"""The types there are. The fallbacks are those of llama.cpp's quantizer."""


def storage_type(name: str) -> StorageType:
    """Look up a type by name.

    Raises:
        UsageError: unknown; names the nearest, or those there are.
    """
    if name not in TYPES:
        raise UsageError(f"unknown GGUF type {name!r}{nearest(name, TYPES)}")
    return TYPES[name]


def fitting_type(wanted: str, row: int) -> str:
    """The type wanted if rows of this length fit it, else the first of its fallbacks that they fit."""
    while row % storage_type(wanted).block:
        wanted = TYPES[wanted].fallback
    return wanted


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


def padded(size: int) -> int:
    """`size` rounded up to the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT
