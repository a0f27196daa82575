"""GGUF as a budget sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from ...converter.budget.forms import Form
from ...converter.checkpoint.reader import CheckpointReader
from ..gguf.codes import CODES
from ..gguf.rounding import PLAIN, round_nearest
from ..gguf.types import TYPES, padded, tensor_bytes
from .gguf_size import GgufSize

DENSE_TYPES = ("f16", "q8_0", "q6_k", "q5_k", "q5_0", "q4_k", "iq4_nl", "iq4_xs", "q3_k", "q2_k")
"""Without the types of an offset per block: to models that were read from a file of such a type they cost nothing,
which tells nothing of any other."""
FACTOR_TYPES = ("q8_0", "q6_k", "q5_k", "q5_0", "q4_k", "iq4_nl", "iq4_xs", "q3_k")


@dataclass(frozen=True)
class GgufFormat:
    """The storage types of GGUF files, rounded with ggml.

    Attributes:
        library: a ggml library.
    """

    library: Path
    name = "gguf"

    @property
    def types(self) -> Sequence[str]:
        """The storage types that are chosen among."""
        return DENSE_TYPES

    @property
    def factor_types(self) -> Sequence[str]:
        """Those of factors."""
        return FACTOR_TYPES

    def fits(self, type: str, row: int) -> bool:
        """Whether rows of a length can be stored in a type."""
        return row % TYPES[type].block == 0

    def width(self, type: str) -> int:
        """Columns that aware rounding rounds together."""
        return 1 if type in CODES or type in PLAIN else TYPES[type].block

    def round_plainly(self, weights: Tensor, type: str, importance: Tensor) -> Tensor:
        """Weights (m, n) as a file gives them back, rounded to the nearest."""
        return self._rounded(weights, type, importance)

    def round_vocabulary(self, weights: Tensor, type: str, importance: Tensor | None) -> Tensor:
        """Embedding or head (vocabulary, d) as a file gives it back."""
        return self._rounded(weights, type, importance)

    def bytes(self, shape: tuple[int, int], type: str) -> int:
        """Of a matrix in the file, padding included."""
        return padded(tensor_bytes(shape, type))

    def factors_pay(self, shape: tuple[int, int], form: Form) -> bool:
        """Time is no part of a choice here."""
        return True

    @property
    def plain(self) -> Sequence[tuple[str, str]]:
        """Any type for the linears, any for what else there is."""
        return list(product(FACTOR_TYPES, FACTOR_TYPES))

    def fallback(self, type: str) -> str | None:
        """The type that stands in where rows do not fit."""
        return (TYPES[type].fallback or None) if type in FACTOR_TYPES else None

    def size(self, reader: CheckpointReader, name: str, method: str) -> GgufSize:
        """Of a model's file."""
        return GgufSize(reader, name, method)

    def _rounded(self, weights: Tensor, type: str, importance: Tensor | None) -> Tensor:
        if type in PLAIN:
            return weights.to(PLAIN[type]).to(torch.float32)
        return round_nearest(weights, type, self.library, importance).values
