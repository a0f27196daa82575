"""The types an ONNX export can have, and the options of their encoding: which matrix is stored how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from ...converter.checkpoint.layouts import C_SUFFIX, P_SUFFIX, U_SUFFIX, V_SUFFIX
from ...converter.errors import UsageError
from ...converter.recipe import nearest
from .quantise import BlockFormat

BLOCK_SIZES = (16, 32, 64, 128, 256)
ACCURACY_LEVELS = (0, 1, 4)
EMBEDDING = "embed_tokens.weight"
HEAD = "lm_head.weight"
EVEN_BLOCKS = 64
"""Two zero points share a byte; and other tools' quantisers fail on an odd number of 4-bit blocks of 32."""
How = Literal["plain", "aware"]


@dataclass(frozen=True)
class OnnxType:
    """Bits per weight of each kind of matrix: 32 and 16 are floats, 8 and 4 codes.

    Attributes:
        inner: the factor that meets the input: V, or P.
        outer: the other factor: U, or C.
        dense: a linear that is not factored.
        head: embedding and output head, where they are not factored.
    """

    inner: int
    outer: int
    dense: int
    head: int


QUANTISATIONS: Mapping[str, OnnxType] = {
    "fp32": OnnxType(32, 32, 32, 32),
    "fp16": OnnxType(16, 16, 16, 16),
    "int8": OnnxType(8, 8, 8, 8),
    "int4": OnnxType(4, 4, 4, 8),
    "int4-mix": OnnxType(8, 4, 4, 8),
}
"""By name. Measured in docs/onnx.md."""


@dataclass(frozen=True)
class OnnxOptions:
    """How matrices are rounded to codes; floats are not concerned. The defaults are measured in docs/onnx.md.

    Attributes:
        block_size: columns that share a scale.
        symmetric: blocks have a scale alone, else a zero point too.
        accuracy_level: of MatMulNBits: 4 rounds activations to 8 bits per block, 0 and 1 multiply in float.
        rounding: "plain", every weight to the nearest code; or "aware", see `exporters.aware.round_linears`.
        calibration: the text that "aware" runs, where it is not the one that the checkpoint records.

    Raises:
        UsageError: a value that is not offered.
    """

    block_size: int = 32
    symmetric: bool = True
    accuracy_level: int = 4
    rounding: str = "plain"
    calibration: str | None = None

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            raise UsageError(f"--onnx-block-size {self.block_size}: one of {', '.join(map(str, BLOCK_SIZES))}")
        if self.accuracy_level not in ACCURACY_LEVELS:
            levels = ", ".join(map(str, ACCURACY_LEVELS))
            raise UsageError(f"--onnx-accuracy-level {self.accuracy_level}: one of {levels}")
        if self.rounding not in get_args(How):
            raise UsageError(
                f"--onnx-rounding {self.rounding}: unknown rounding{nearest(self.rounding, get_args(How))}"
            )

    def said(self, quantisation: str) -> str:
        """What a file says of its encoding; empty for floats."""
        if not has_codes(quantisation):
            return ""
        kind = "symmetric" if self.symmetric else "asymmetric"
        return f"blocks of {self.block_size}, {kind}, accuracy level {self.accuracy_level}, {self.rounding} rounding"


def has_codes(quantisation: str) -> bool:
    """Whether a type stores linears as codes."""
    return QUANTISATIONS[quantisation].dense <= 8


def bits_of(name: str, quantisation: str) -> int:
    """Bits per weight of a matrix, by its name in the checkpoint."""
    type = QUANTISATIONS[quantisation]
    if name.endswith((V_SUFFIX, P_SUFFIX)):
        return type.inner
    if name.endswith((U_SUFFIX, C_SUFFIX)):
        return type.outer
    return type.head if name.endswith((EMBEDDING, HEAD)) else type.dense


def block_format(name: str, quantisation: str, options: OnnxOptions) -> BlockFormat | None:
    """The encoding of a matrix, by its name in the checkpoint; None where it stays float."""
    bits = bits_of(name, quantisation)
    return BlockFormat(bits, options.block_size, options.symmetric) if bits <= 8 else None


def row_multiple(quantisation: str, options: OnnxOptions) -> int:
    """What ranks should be a multiple of: whole blocks, of 4-bit codes an even number of small ones."""
    if not has_codes(quantisation):
        return 1
    return max(options.block_size, EVEN_BLOCKS) if QUANTISATIONS[quantisation].outer == 4 else options.block_size
