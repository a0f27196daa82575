"""How an export stores its matrices: what both ways of making a graph need to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from .quantize import QuantizedMatrix


@dataclass(frozen=True)
class StoredWeights:
    """How the matrices are stored that are not float32.

    Attributes:
        encoded: linear or embedding -> its codes; all of one block size.
        half: the others are float16, and made float32 when the model is loaded.
        block_size: columns that share a scale.
        accuracy_level: of MatMulNBits.
    """

    encoded: Mapping[nn.Module, QuantizedMatrix]
    half: bool = False
    block_size: int = 32
    accuracy_level: int = 4
