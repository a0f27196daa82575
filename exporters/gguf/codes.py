"""Storage types whose blocks are a scale and one code per weight: the code can be chosen weight by weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
BLOCK = 32


@dataclass(frozen=True)
class Codes:
    """A weight is scale * level (+ offset); scale and offset belong to a block of 32 weights of a row.

    Attributes:
        levels: ascending; the code of a level is its index.
        bits: of a code: 4, 5 or 8.
        offset: whether blocks have one; it follows the scale, both are float16.
    """

    levels: tuple[int, ...]
    bits: int
    offset: bool = False

    def scales(self, encoded: NDArray[np.uint8]) -> tuple[Matrix, Matrix]:
        """Scale and offset of every row (m,) of one encoded block (m, bytes)."""
        head = np.ascontiguousarray(encoded[:, : 4 if self.offset else 2]).view(np.float16).astype(np.float32)
        return head[:, 0], head[:, 1] if self.offset else np.zeros(len(head), dtype=np.float32)

    def nearest(self, weights: Matrix, scale: Matrix, offset: Matrix) -> NDArray[np.uint8]:
        """The codes (m,) nearest to one weight of every row (m,)."""
        safe = np.where(scale == 0, np.float32(1), scale)
        levels = np.asarray(self.levels, dtype=np.float32)
        nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, (weights - offset) / safe)
        return nearest.astype(np.uint8)

    def values(self, codes: NDArray[np.uint8], scale: Matrix, offset: Matrix) -> Matrix:
        """What codes (m,) stand for, to the bit as the runtime computes it."""
        values: Matrix = scale * np.asarray(self.levels, dtype=np.float32)[codes] + offset
        return values

    def pack(self, codes: NDArray[np.uint8], encoded: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """An encoded block (m, bytes) with other codes (m, 32) at its scales."""
        head = encoded[:, : 4 if self.offset else 2]
        return np.concatenate([head, _PACKED[self.bits](codes)], axis=1)


def _nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Weights i and i + 16 share a byte."""
    packed: NDArray[np.uint8] = np.bitwise_or(codes[:, :16] & np.uint8(15), codes[:, 16:] << np.uint8(4))
    return packed


def _nibbles_and_fifth_bits(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The fifth bits of all weights come first, weight 0 lowest."""
    return np.concatenate([np.packbits(codes >> 4, axis=1, bitorder="little"), _nibbles(codes)], axis=1)


def _signed_bytes(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Code 0 is level -127."""
    return (codes.astype(np.int16) - 127).astype(np.int8).view(np.uint8)


_PACKED: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    4: _nibbles,
    5: _nibbles_and_fifth_bits,
    8: _signed_bytes,
}
IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
CODES = {
    "q8_0": Codes(tuple(range(-127, 128)), 8),
    "q5_1": Codes(tuple(range(32)), 5, offset=True),
    "q5_0": Codes(tuple(range(-16, 16)), 5),
    "q4_1": Codes(tuple(range(16)), 4, offset=True),
    "q4_0": Codes(tuple(range(-8, 8)), 4),
    "iq4_nl": Codes(IQ4_LEVELS, 4),
}
"""The types of this kind."""
