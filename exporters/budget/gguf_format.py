"""GGUF as a budget sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...converter.budget.forms import Candidate, Form
from ...converter.checkpoint import layouts
from ..gguf.codes import CODES
from ..gguf.rounding import PLAIN, round_nearest
from ..gguf.types import TYPES, padded, tensor_bytes
from .linears import RANK_STEP

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

    def round_vocabulary(self, weights: Tensor, type: str) -> Tensor:
        """Embedding or head (vocabulary, d) as a file gives it back."""
        return self._rounded(weights, type, None)

    def bytes(self, shape: tuple[int, int], type: str) -> int:
        """Of a matrix in the file, padding included."""
        return padded(tensor_bytes(shape, type))

    def smallest_factors(self, shape: tuple[int, int], overhead: int) -> list[Candidate]:
        """Two factors of the lowest rank there is, in every type of V^T; nothing where a rank of 32 saves nothing.

        Args:
            shape: (m, n) of the dense matrix.
            overhead: bytes that factors take elsewhere in the file.
        """
        m, n = shape
        if layouts.break_even("two-factor", m, n) <= RANK_STEP:
            return []
        return [
            Candidate(
                self.bytes((m, RANK_STEP), u) + self.bytes((RANK_STEP, n), v) + overhead, 0.0, Form((u, v), RANK_STEP)
            )
            for u in FACTOR_TYPES
            for v in FACTOR_TYPES
            if self.fits(u, RANK_STEP) and self.fits(v, n)
        ]

    def _rounded(self, weights: Tensor, type: str, importance: Tensor | None) -> Tensor:
        if type in PLAIN:
            return weights.to(PLAIN[type]).to(torch.float32)
        return round_nearest(weights, type, self.library, importance).values
