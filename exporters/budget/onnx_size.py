"""Bytes of an ONNX folder's graph and weights before there are any: weights exactly, the graph from above."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from ...converter.budget.forms import Form
from ...converter.checkpoint.reader import CheckpointReader
from ..onnx.weights.sizes import rotary_elements
from ..onnx.weights.types import OnnxOptions

FLOAT = 4
GRAPH = 9_000  # mask, embedding, last norm, logits, and what the model says of itself
BLOCK = 4_200  # attention, norms, activation and cache of a block, without what multiplies with stored matrices
NORM = 2_400  # beyond two of every block: of heads, written out in six nodes
BIAS = 700
MATRIX = 720  # a matmul, what it gives, and the entries of codes and scales
ZEROS = 170  # the entry of zero points
FACTORS = 960  # the Split after what several linears have in common, and its parts
NORMS = 2  # of a block, counted there


class OnnxSize:
    """The folder that a model becomes, by the forms of its matrices.

    Args:
        reader: the dense checkpoint.
        options: of the encoding.
    """

    def __init__(self, reader: CheckpointReader, options: OnnxOptions) -> None:
        self._options = options
        self._shapes = {name: reader.shape(name) for name in reader.names}
        vectors = {name: prod(shape) for name, shape in self._shapes.items() if len(shape) < 2}
        biases, blocks = sum(name.endswith(".bias") for name in vectors), int(reader.config["num_hidden_layers"])
        norms = max(len(vectors) - biases - NORMS * blocks, 0)
        self._graph = GRAPH + BLOCK * blocks + BIAS * biases + NORM * norms
        self._floats = FLOAT * (sum(vectors.values()) + rotary_elements(reader.config))

    def __call__(self, forms: Mapping[str, Form], recipe_text: str) -> int:
        """Bytes of model.onnx and its data.

        Args:
            forms: module -> what it becomes, every matrix of the model.
            recipe_text: the recipe that the graph will hold.
        """
        others = self._graph + len(recipe_text.encode()) + self._floats
        return others + sum(self._module(module, form) for module, form in forms.items())

    def overhead(self, module: str) -> int:
        """One matmul and one Split more."""
        return MATRIX + FACTORS

    def _module(self, module: str, form: Form) -> int:
        m, n = self._shapes[module + ".weight"]
        if form.rank is None:
            return MATRIX + matrix_bytes((m, n), form.types[0], self._options)
        u, v = form.types
        factors = matrix_bytes((m, form.rank), u, self._options) + matrix_bytes((form.rank, n), v, self._options)
        return MATRIX + self.overhead(module) + factors


def matrix_bytes(shape: tuple[int, int], type: str, options: OnnxOptions) -> int:
    """Codes, scales and zero points of a matrix, padding included, and what the graph says of the latter.

    Args:
        shape: (m, n).
        type: one of `CODES`.
        options: of the encoding.
    """
    format = options.format(type)
    return shape[0] * format.row_bytes(shape[1]) + (0 if format.symmetric else ZEROS)
