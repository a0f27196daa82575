"""Sizes of a model and of calibration windows, and what a block's passes take of memory: arithmetic from headers.

All figures are bytes of tensors. docs/large-models.md explains the terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..model.blocks import BlockSource
from ..storage.safetensors_header import WIDTHS

FLOAT, DOUBLE = 4, 8


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a dense model, from its config and file headers.

    Attributes:
        blocks: how many.
        hidden: d, features of the residual stream.
        vocabulary: tokens.
        inputs: input group -> its features n.
        outputs: linear (path inside a block) -> its features m.
        groups: input group -> its linears.
        block_parameters: of the largest block.
        other_parameters: outside the blocks, the largest tensor and all.
        weight_bytes: per parameter, in the dtype that is computed in.
        bfloat16: whether forwards multiply in it.
        stored_bytes: per parameter, in the widest dtype of the files.
        experts: of a block, 0 where its MLP is one, and
        used: those that see a token.
    """

    blocks: int
    hidden: int
    vocabulary: int
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]
    groups: Mapping[str, tuple[str, ...]]
    block_parameters: int
    largest_other: int
    other_parameters: int
    weight_bytes: int
    bfloat16: bool
    stored_bytes: int = FLOAT
    experts: int = 0
    used: int = 0

    @property
    def block(self) -> int:
        """Bytes of one block's weights."""
        return self.block_parameters * self.weight_bytes

    @property
    def model(self) -> int:
        """Parameters of the whole model."""
        return self.blocks * self.block_parameters + self.other_parameters

    @property
    def largest_linear(self) -> int:
        """Entries of the largest linear."""
        return max(self.outputs[name] * self.inputs[group] for group, names in self.groups.items() for name in names)

    @property
    def queries(self) -> int:
        """Features of the queries of attention, of all heads."""
        first = next(iter(self.groups.values()))
        return max(self.hidden, self.outputs[first[0]])

    def moment(self, group: str) -> int:
        """An (n, n) matrix in float64."""
        return DOUBLE * self.inputs[group] ** 2

    def singular(self, group: str, windows: WindowSizes) -> bool:
        """Whether a group's second moment cannot be regular, or hardly, so that its eigenvectors whiten it."""
        n, tokens = self.inputs[group], windows.fitted * windows.length
        routed = self.experts and list(self.inputs).index(group) > 1
        return tokens * self.used < 2 * n * self.experts if routed else tokens < n

    def product(self, features: int, tokens: int) -> int:
        """What adding a chunk to a moment takes: the product, and the inputs or their difference, in float32."""
        return FLOAT * features * (features + tokens * (2 if self.bfloat16 else 1))

    def forward(self, tokens: int) -> int:
        """Activations inside a block's forward at its worst moment, in attention or between gate, up and down."""
        widest = max(self.inputs.values())
        routed = 2 * self.hidden if self.experts else 0  # what an expert is given, and the sum over a token's experts
        inside = tokens * FLOAT * max(2 * self.hidden + 8 * self.queries, 2 * self.hidden + 3 * widest + routed)
        return inside + (2 * 2 * self.largest_linear if self.bfloat16 else 0)

    def backward(self, tokens: int) -> int:
        """Activations that a block's forward keeps for its backward, and the gradients of the largest."""
        widest = max(self.inputs.values())
        routed = self.used * (3 * self.hidden + 5 * widest)
        inside = tokens * FLOAT * (8 * self.hidden + 10 * self.queries + 6 * widest + routed)
        return inside + (2 * 2 * self.block_parameters if self.bfloat16 else 0)

    def suspended(self, group: int, tokens: int) -> int:
        """What forwards that are suspended at an input group keep in memory, beside the residual stream.

        Args:
            group: number of the group.
            tokens: of all forwards.
        """
        names = list(self.inputs)
        features = (self.hidden, 2 * self.hidden + 6 * self.queries, 2 * self.hidden)
        if self.experts and group > 1:  # the sum over experts besides, and the rows of one
            return tokens * FLOAT * (3 * self.hidden + self.inputs[names[group]])
        held = features[group] if group < len(features) else 2 * self.hidden + self.inputs[names[group]]
        return tokens * FLOAT * held


def model_shape(blocks: BlockSource) -> ModelShape:
    """The sizes of a model, read from headers."""
    family, reader, experts = blocks.family, blocks.reader, blocks.family.experts
    shapes = blocks.linear_shapes()
    named = {name: shapes[family.linear_name(0, name)] for name in family.linears}
    parameters, others = [0] * blocks.block_count, []
    for name in reader.names:
        size = 1
        for length in reader.shape(name):
            size *= length
        inside = name.removeprefix(family.blocks + ".").split(".")[0] if name.startswith(family.blocks + ".") else ""
        if inside.isdigit() and int(inside) < blocks.block_count:
            parameters[int(inside)] += size
        else:
            others.append(size)
    vocabulary, hidden = reader.shape(family.embedding + ".weight")
    return ModelShape(
        blocks=blocks.block_count,
        hidden=hidden,
        vocabulary=vocabulary,
        inputs={group.name: named[group.linears[0]][1] for group in family.groups},
        outputs={name: out for name, (out, _) in named.items()},
        groups={group.name: group.linears for group in family.groups},
        block_parameters=max(parameters),
        largest_other=max(others),
        other_parameters=sum(others),
        weight_bytes=blocks.dtype.itemsize,
        bfloat16=blocks.bfloat16,
        stored_bytes=max(WIDTHS[reader.dtype(name)] for name in reader.names),
        experts=0 if experts is None else experts.number(reader.config),
        used=0 if experts is None else experts.used_per_token(reader.config),
    )


@dataclass(frozen=True)
class WindowSizes:
    """Calibration windows of a process by number and length.

    Attributes:
        fitted, held_out: how many.
        length: tokens per window.
        chunk: windows per forward, at most.
        processes: that share the job.
    """

    fitted: int
    held_out: int
    length: int
    chunk: int
    processes: int = 1

    @property
    def tokens(self) -> int:
        """Of all windows."""
        return (self.fitted + self.held_out) * self.length

    @property
    def chunk_tokens(self) -> int:
        """Of one forward."""
        return min(self.chunk, self.fitted + self.held_out) * self.length
