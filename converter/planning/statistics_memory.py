"""What the passes over the dense model take of memory at their peaks: sampling, moments, gradients, sensitivities.

All figures are bytes of tensors. docs/large-models.md explains the terms.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..allocation.candidate_cut import TENTHS, measured_retentions
from ..core.recipe import Recipe
from ..methods import Method
from ..statistics.gradients import CHUNK_WINDOWS
from ..statistics.gradients import HEAD_ROWS as GRADIENT_ROWS
from ..statistics.sensitivity import IMPORTANCE_WINDOWS
from .compression_memory import CompressionMemory
from .model_shape import DOUBLE, FLOAT, ModelShape, WindowSizes


@dataclass(frozen=True)
class StatisticsMemory:
    """The terms of what is gathered before a compression; attributes as in `CompressionMemory`."""

    recipe: Recipe
    method: Method
    shape: ModelShape
    windows: WindowSizes

    def sampling(self) -> int:
        """The whole model, and keys and values of all windows."""
        shape, groups = self.shape, list(self.shape.groups)
        cached = sum(shape.outputs[name] for name in shape.groups[groups[0]]) - shape.inputs[groups[1]]
        windows = self.recipe.windows + self.recipe.held_out
        tokens = windows * self.recipe.window_length
        growing = (shape.blocks + 1) * tokens * cached  # a block's are copied when a token is added
        return (shape.model + growing + windows * shape.vocabulary) * shape.weight_bytes

    def dense_moments(self) -> int:
        """Second moments of all input groups at once."""
        halves = 2 if self.windows.held_out else 1
        moments = sum(halves * self.shape.moment(group) for group in self.shape.inputs)
        product = self.shape.product(max(self.shape.inputs.values()), self.windows.chunk_tokens)
        return (
            self.shape.block
            + moments
            + self._kept(moments)
            + max(product, self.shape.forward(self.windows.chunk_tokens))
        )

    def gradients(self) -> int:
        """One block's backward and the moments of its gradients, or the head."""
        shape = self.shape
        tokens = min(CHUNK_WINDOWS, self.recipe.gradient_windows) * self.windows.length
        moments = sum(DOUBLE * out**2 for out in shape.outputs.values()) + sum(map(self.shape.moment, shape.inputs))
        widest = max(*shape.outputs.values(), *shape.inputs.values())
        inside = (
            shape.block
            + moments
            + self._kept(moments)
            + self.shape.backward(tokens)
            + self.shape.product(widest, tokens)
        )
        if not self.method.needs_gradients and self.recipe.refine == "none":  # Fisher's rows only
            inside = shape.block + self.shape.backward(tokens) + 3 * FLOAT * shape.largest_linear
        head = shape.vocabulary * shape.hidden * (shape.weight_bytes + (2 if shape.bfloat16 else 0))
        logits = 5 * FLOAT * GRADIENT_ROWS * shape.vocabulary
        return max(inside, head + logits + 4 * tokens * shape.hidden * FLOAT)

    def _kept(self, moments: int) -> int:
        """A margin for experts: measured peaks (docs/experts.md) lie above the sum of their tensors."""
        return moments // 2 if self.shape.experts else 0

    def spectra(self) -> int:
        """Both metrics and three copies of the largest linear of each group."""
        found = 0
        for group, names in self.shape.groups.items():
            n = self.shape.inputs[group]
            whitener = self.shape.moment(group) * (5 if self.shape.singular(group, self.windows) else 2)
            for name in names:
                m = self.shape.outputs[name]
                outputs = 2 * DOUBLE * m * m if self.method.allocation == "threshold" else 0
                found = max(found, whitener + outputs + DOUBLE * (3 * m * n + 3 * min(m, n) ** 2))
        return self.shape.block + found

    def block_importance(self) -> int:
        """A block's forward over a few windows, with what goes in and what comes out."""
        length = self.windows.length
        window = length * self.shape.hidden * self.shape.weight_bytes
        return self.shape.block + 2 * IMPORTANCE_WINDOWS * window + self.shape.forward(length)

    def truncated_linears(self) -> int:
        """Every linear of a block truncated alone, at each retention that is measured."""
        return self.variants(len(self.shape.outputs) * len(measured_retentions(self.recipe.retention)))

    def truncated_blocks(self) -> int:
        """Every block truncated alone, beside its weights and the factors of the largest truncation."""
        factors = int(TENTHS[-1] * DOUBLE * self.shape.block_parameters)
        return self.variants(len(TENTHS)) + self.shape.block + factors

    def variants(self, count: int) -> int:
        """A residual stream per window of each of `count` variants of a block; forwards, fits, or the head."""
        shape = self.shape
        window = self.windows.length * shape.hidden * shape.weight_bytes
        kept = self.recipe.sensitivity_windows * window
        alone = CompressionMemory(self.recipe, self.method, shape, self.windows)
        fits = max(
            shape.moment(group) + alone.fit(group, name) for group, names in shape.groups.items() for name in names
        )
        head = shape.vocabulary * (shape.hidden * shape.weight_bytes + 4 * FLOAT * GRADIENT_ROWS) + 3 * kept
        inside = max(self.shape.forward(self.recipe.sensitivity_windows * self.windows.length), fits, head)
        return shape.block + (count + 1) * kept + inside
