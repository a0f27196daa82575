"""Bytes of an ONNX folder's graph and weights before there are any: weights exactly, the graph from above."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Protocol

from ...converter.budget.forms import Form
from ...converter.checkpoint.reader import CheckpointReader
from ..onnx.weights.sizes import rotary_elements

FLOAT = 4
GRAPH = 9_000  # mask, embedding, last norm, logits, and what the model says of itself
BLOCK = 4_200  # attention, norms, activation and cache of a block, without what multiplies with stored matrices
VECTOR = 2_400  # beyond the two norms of a block: a bias that is added, a norm of heads written out in six nodes
MATRIX = 820  # a matmul, what it gives, and the entries of codes, scales and zero points
FACTORS = 960  # the Split after what several linears have in common, and its parts
NORMS = 2  # of a block, counted there


class MatrixBytes(Protocol):
    """What tells the bytes of a matrix: `OnnxFormat`."""

    def bytes(self, shape: tuple[int, int], type: str) -> int:
        """Of one in a type."""


class OnnxSize:
    """The folder that a model becomes, by the forms of its matrices.

    Args:
        reader: the dense checkpoint.
        format: of the folder.
    """

    def __init__(self, reader: CheckpointReader, format: MatrixBytes) -> None:
        self._format = format
        self._shapes = {name: reader.shape(name) for name in reader.names}
        self._vectors = [prod(shape) for shape in self._shapes.values() if len(shape) < 2]
        self._blocks = int(reader.config["num_hidden_layers"])
        self._rotary = FLOAT * rotary_elements(reader.config)

    def __call__(self, forms: Mapping[str, Form], recipe_text: str) -> int:
        """Bytes of model.onnx and its data.

        Args:
            forms: module -> what it becomes, every matrix of the model.
            recipe_text: the recipe that the graph will hold.
        """
        others = max(len(self._vectors) - NORMS * self._blocks, 0)
        graph = GRAPH + BLOCK * self._blocks + VECTOR * others + len(recipe_text.encode())
        weights = self._rotary + FLOAT * sum(self._vectors)
        return graph + weights + sum(self._module(module, form) for module, form in forms.items())

    def overhead(self, module: str) -> int:
        """One matmul and one Split more."""
        return MATRIX + FACTORS

    def _module(self, module: str, form: Form) -> int:
        m, n = self._shapes[module + ".weight"]
        if form.rank is None:
            return MATRIX + self._format.bytes((m, n), form.types[0])
        u, v = form.types
        matrices = self._format.bytes((m, form.rank), u) + self._format.bytes((form.rank, n), v)
        return MATRIX + self.overhead(module) + matrices
