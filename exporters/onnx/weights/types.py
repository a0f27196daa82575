"""The types an ONNX export can have, and the options of their encoding: which matrix is stored how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from ....converter.budget.forms import Form
from ....converter.checkpoint.layouts import C_SUFFIX, P_SUFFIX, U_SUFFIX, V_SUFFIX
from ....converter.core.errors import UsageError
from ....converter.core.nearest import nearest
from ...chosen import CHOSEN, check_types
from .quantize import BlockFormat

BLOCK_SIZES = (16, 32, 64, 128, 256)
ACCURACY_LEVELS = (0, 1, 4)
EMBEDDING = "embed_tokens.weight"
HEAD = "lm_head.weight"
NARROWING = ("down_proj", "fc2")
"""Linears with more columns than rows: V is their larger factor, and gets the bits that U has elsewhere."""
EVEN_BLOCKS = 64
"""Two zero points share a byte; and other tools' quantizers fail on an odd number of 4-bit blocks of 32."""
How = Literal["plain", "aware"]
Factors = Literal["auto", "all"]


@dataclass(frozen=True)
class OnnxType:
    """Bits per weight of each kind of matrix: 32 and 16 are floats, 8 and 4 codes.

    Attributes:
        inner: the factor that meets the input: V, or P; of `NARROWING` linears U.
        outer: the other factor: U, or C; of `NARROWING` linears V.
        dense: a linear that is not factored.
        head: embedding and output head, where they are not factored.
    """

    inner: int
    outer: int
    dense: int
    head: int


QUANTIZATIONS: Mapping[str, OnnxType] = {
    "fp32": OnnxType(32, 32, 32, 32),
    "fp16": OnnxType(16, 16, 16, 16),
    "int8": OnnxType(8, 8, 8, 8),
    "int4": OnnxType(4, 4, 4, 8),
    "int4-mix": OnnxType(8, 4, 4, 8),
}
"""By name. Measured in docs/onnx.md."""
CODES: Mapping[str, int] = {"int8": 8, "int4": 4, "uint4": 4}
"""What a choice can name: type of one matrix -> bits of its codes."""
ZERO_POINTS = ("uint4",)
"""Of these, what has a zero point per block in any case."""


@dataclass(frozen=True)
class OnnxOptions:
    """How matrices are stored: rounded to codes, and factored. The defaults are measured in docs/onnx.md.

    Attributes:
        block_size: columns that share a scale.
        symmetric: blocks have a scale alone, else a zero point too.
        accuracy_level: of MatMulNBits: 4 rounds activations to 8 bits per block, 0 and 1 multiply in float.
        rounding: "plain", every weight to the nearest code; or "aware", GPTQ, see `gptq_linears.round_linears`.
        calibration: the text that "aware" runs, where it is not the one that the checkpoint records.
        device: that "aware" runs it on: "auto", "cpu", "cuda".
        factors: "auto" multiplies a linear out where one matmul costs less than two, see `multiplied_out`; "all" keeps
            every linear as the checkpoint has it. What was chosen for a size is kept in any case.
        chosen: for `chosen.CHOSEN`, tensor name in the checkpoint -> its type, one of `CODES`.

    Raises:
        UsageError: a value that is not offered.
    """

    block_size: int = 32
    symmetric: bool = True
    accuracy_level: int = 4
    rounding: str = "plain"
    calibration: str | None = None
    factors: str = "auto"
    device: str = "cpu"
    chosen: Mapping[str, str] | None = field(default=None, compare=False)

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
        if self.factors not in get_args(Factors):
            raise UsageError(f"--onnx-factors {self.factors}: auto or all{nearest(self.factors, get_args(Factors))}")

    def format(self, type: str) -> BlockFormat:
        """The encoding of one of `CODES`."""
        return BlockFormat(CODES[type], self.block_size, self.symmetric and type not in ZERO_POINTS)

    def recorded(self, quantization: str) -> str:
        """What a file says of its encoding: of codes how they were made, and whether every factor was kept."""
        kept = ["all factors"] if self.factors == "all" else []
        if not has_codes(quantization):
            return ", ".join(kept)
        kind = "symmetric" if self.symmetric else "asymmetric"
        level = f"accuracy level {self.accuracy_level}"
        return ", ".join([f"blocks of {self.block_size}", kind, level, f"{self.rounding} rounding", *kept])


def has_codes(quantization: str) -> bool:
    """Whether a type stores linears as codes."""
    return quantization == CHOSEN or QUANTIZATIONS[quantization].dense <= 8


def bits_of(name: str, quantization: str) -> int:
    """Bits per weight of a matrix, by its name in the checkpoint."""
    type = QUANTIZATIONS[quantization]
    if name.endswith(tuple(linear + V_SUFFIX for linear in NARROWING)):
        return type.outer
    if name.endswith(tuple(linear + U_SUFFIX for linear in NARROWING)):
        return type.inner
    if name.endswith((V_SUFFIX, P_SUFFIX)):
        return type.inner
    if name.endswith((U_SUFFIX, C_SUFFIX)):
        return type.outer
    return type.head if name.endswith((EMBEDDING, HEAD)) else type.dense


def block_format(name: str, quantization: str, options: OnnxOptions) -> BlockFormat | None:
    """The encoding of a matrix, by its name in the checkpoint; None where it stays float.

    Raises:
        UsageError: a choice that says nothing of it.
    """
    if quantization == CHOSEN:
        if options.chosen is None or name not in options.chosen:
            raise UsageError(f"{CHOSEN}: the choice says nothing of {name}; export in another type")
        return options.format(options.chosen[name])
    bits = bits_of(name, quantization)
    return BlockFormat(bits, options.block_size, options.symmetric) if bits <= 8 else None


def row_multiple(quantization: str, options: OnnxOptions) -> int:
    """What ranks should be a multiple of: whole blocks, of 4-bit codes an even number of small ones."""
    if quantization == CHOSEN:
        return 1  # ranks are chosen with the types
    if not has_codes(quantization):
        return 1
    return max(options.block_size, EVEN_BLOCKS) if QUANTIZATIONS[quantization].outer == 4 else options.block_size


def chosen_types(forms: Mapping[str, Form]) -> dict[str, str]:
    """Tensor name in the checkpoint -> type of every matrix, as a recipe's choice has them.

    Args:
        forms: module -> what it becomes.

    Raises:
        UsageError: a type of another format.
    """
    check_types(forms.values(), CODES, "onnx")
    return {
        module + ending: type
        for module, form in forms.items()
        for ending, type in zip((".weight",) if form.rank is None else (U_SUFFIX, V_SUFFIX), form.types, strict=True)
    }
