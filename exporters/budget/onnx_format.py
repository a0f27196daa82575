"""ONNX as a budget sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...converter.budget.forms import Form
from ...converter.checkpoint.reader import CheckpointReader
from ..onnx.weights.multiplied_out import MATMUL, weights_cost
from ..onnx.weights.quantize import dequantize, quantize, searched_values
from ..onnx.weights.types import CODES, QUANTIZATIONS, ZERO_POINTS, OnnxOptions
from .onnx_size import OnnxSize, matrix_bytes


@dataclass(frozen=True)
class OnnxFormat:
    """The codes of ONNX folders.

    Attributes:
        options: of the encoding. Where they keep all factors, the time of a matmul more counts nothing.
    """

    options: OnnxOptions

    @property
    def name(self) -> str:
        """Blocks and zero points change what rounding costs."""
        return f"onnx-{self.options.block_size}" + ("" if self.options.symmetric else "-asymmetric")

    @property
    def types(self) -> Sequence[str]:
        """Of every matrix, embedding and head included; where all blocks have zero points, none is said to."""
        return tuple(type for type in CODES if self.options.symmetric or type not in ZERO_POINTS)

    @property
    def factor_types(self) -> Sequence[str]:
        """Factors have the same."""
        return self.types

    @property
    def plain(self) -> Sequence[tuple[str, str]]:
        """The exports of one type, whose embedding and head have 8 bits."""
        return [(type, "int8") for type in CODES if type in QUANTIZATIONS]

    def fits(self, type: str, row: int) -> bool:
        """Rows are padded to whole blocks."""
        return True

    def fallback(self, type: str) -> str | None:
        """None is needed."""
        return None

    def width(self, type: str) -> int:
        """Codes are rounded column by column."""
        return 1

    def bytes(self, shape: tuple[int, int], type: str) -> int:
        """Codes, scales and zero points, padding included."""
        return matrix_bytes(shape, type, self.options)

    def factors_pay(self, shape: tuple[int, int], form: Form) -> bool:
        """Where they cost less than the dense matrix in the wider of their types, counted as in `multiplied_out`."""
        if self.options.factors == "all":
            return True
        (m, n), (u, v), rank = shape, form.types, form.rank or 0
        wider = max(form.types, key=lambda type: CODES[type])
        return MATMUL + self._cost((m, rank), u) + self._cost((rank, n), v) < self._cost(shape, wider)

    def round_plainly(self, weights: Tensor, type: str, importance: Tensor) -> Tensor:
        """At the scales that aware rounding takes."""
        return searched_values(weights, importance, self.options.format(type))

    def round_vocabulary(self, weights: Tensor, type: str, importance: Tensor | None) -> Tensor:
        """Rounded plainly, as the export does."""
        return dequantize(quantize(weights, self.options.format(type)))

    def size(self, reader: CheckpointReader, name: str, method: str) -> OnnxSize:
        """Of graph and weights; the graph does not say what it was made from."""
        return OnnxSize(reader, self.options)

    def _cost(self, shape: tuple[int, int], type: str) -> float:
        return weights_cost(shape, CODES[type], self.bytes(shape, type))
