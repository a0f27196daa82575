"""What compressing one block takes of memory at its peak: the block, moments of an input group, and the fits.

All figures are bytes of tensors. docs/large-models.md explains the terms.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.recipe import Recipe
from ..methods import Method
from .model_shape import DOUBLE, ModelShape, WindowSizes


@dataclass(frozen=True)
class CompressionMemory:
    """The terms of a block's compression.

    Attributes:
        recipe: what to do.
        method: its row of the method table, as changed by the recipe.
        shape: of the dense model.
        windows: of the calibration.
    """

    recipe: Recipe
    method: Method
    shape: ModelShape
    windows: WindowSizes

    def compression(self, streams: int, suspended: bool) -> int:
        """A block, the moments and metric of the group at work, and what its largest linear takes."""
        groups = list(self.shape.inputs)
        per_block = self.method.installs == "per block"
        found, waiting = 0, 0
        for number, group in enumerate(groups):
            alive = self.shape.suspended(number, self.windows.tokens)
            held = streams * alive if suspended else 0
            blocks = max(1, streams) * self.shape.block
            gathered = self.gathered(group) + waiting
            forward = self.shape.forward(self.windows.chunk_tokens) if streams else 0
            product = self.shape.product(self.shape.inputs[group], self.windows.chunk_tokens) if streams else 0
            found = max(found, blocks + held + gathered + max(forward, product))
            if suspended and number + 1 < len(groups):
                fitting = blocks + held
            else:
                fitting = self.shape.block + (alive if suspended and streams else 0)
            waiting = gathered if per_block else 0
            found = max(found, fitting + self.fitted(group) + (gathered if per_block else 0))
        return found + self.ahead()

    def ahead(self) -> int:
        """Metrics of all groups and factors of a process's linears, where those of a block are truncated at once."""
        if self.windows.processes == 1 or self.method.metric == "compressed":
            return 0
        shape, metrics, entries = self.shape, 0, 0
        for group, names in shape.groups.items():
            rooted = any(shape.outputs[name] > shape.inputs[group] for name in names)
            metrics += self.shape.moment(group) * (2 if rooted else 1) if self.method.needs_dense_moments else 0
            entries += sum(shape.outputs[name] * shape.inputs[group] for name in names)
        return metrics + DOUBLE * (entries // self.windows.processes + shape.largest_linear)

    def gathered(self, group: str) -> int:
        """Moments of a group."""
        return self.shape.moment(group) * sum(self._counts().values()) + self.cross_moment(group)

    def cross_moment(self, group: str) -> int:
        """What the compressed stream lacks against what it has, (n, n), or (m, n) for a single linear with m < n."""
        if not self._counts()["compressed"] or not self.method.aligned:
            return 0
        n, names = self.shape.inputs[group], self.shape.groups[group]
        return DOUBLE * n * (min(n, self.shape.outputs[names[0]]) if len(names) == 1 else n)

    def _counts(self) -> dict[str, int]:
        method, compressed = self.method, self.method.needs_compressed_stream or self.recipe.refine != "none"
        stacked = self.recipe.calibration_reduction == "stack-of-batch" and method.compensation == "adacomp"
        return {
            "dense": int(method.needs_dense_moments),
            "compressed": int(compressed),
            "held out": int(self.windows.held_out > 0 and (compressed or method.needs_dense_moments)),
            "stacked": int(stacked),
        }

    def fitted(self, group: str) -> int:
        """The metric of a group while it is made, and while the group's linears are fitted with it."""
        cross_moment, moment = self.cross_moment(group), self.shape.moment(group)
        narrow = cross_moment < moment  # its regression is done with before the fit
        made = 2 * moment if cross_moment else 0  # Sigma' damped, and L
        kept = self.gathered(group) + (moment if cross_moment and not narrow else 0)
        if self.method.metric in ("activation-scale", "fisher-rows"):
            kept += self.shape.moment(group)  # a diagonal, as a matrix
        fits = factors = 0
        for name in self.shape.groups[group]:
            fits = max(fits, factors + self.fit(group, name))
            factors += self.shape.weight_bytes * self.shape.outputs[name] * self.shape.inputs[group]
        return max(self.gathered(group) + made, kept + fits)

    def fit(self, group: str, name: str) -> int:
        """The fit of one linear: roots of the metrics, copies of the weight, eigenvectors, factors."""
        m, n = self.shape.outputs[name], self.shape.inputs[group]
        rank = min(m, n) if self.recipe.layout == "pivot" else m * n / (m + n)
        outputs = DOUBLE * m * m if self.method.two_sided else 0
        whitener = 0
        if (m > n or self.method.alpha == "adaptive") and self.method.metric != "none":
            whitener = self.shape.moment(group) * (4 if self.shape.singular(group, self.windows) else 1)
        eigen, basis = 5 * min(m, n) ** 2, (4 if m > n else 2) * m * rank + 2 * n * rank
        if self._only_truncates():  # one after the other: eigenvectors, factors of them, the loss that they leave
            found, left = 2 * min(m, n) ** 2 + basis, m * n + 2 * (m + n) * rank
            inside = m * n + max(eigen, found, left)
        else:
            copies = 2 + int(self.method.aligned) + int(self.method.two_sided)
            inside = copies * m * n + eigen + basis
        return max(2 * outputs, outputs + whitener + int(DOUBLE * inside))

    def _only_truncates(self) -> bool:
        """Whether a fit is a truncation of W itself, in two factors."""
        method = self.method
        changes = method.aligned or method.two_sided or method.compensation != "none"
        return not changes and self.recipe.layout == "two-factor"

    def trial(self) -> int:
        """A chunk's forward through a block, and the fit of the group with the most features."""
        group = max(self.shape.inputs, key=self.shape.inputs.__getitem__)
        gathered = self.gathered(group) + max(
            self.shape.forward(self.windows.chunk_tokens),
            self.shape.product(self.shape.inputs[group], self.windows.chunk_tokens),
        )
        return self.shape.block + max(gathered, self.fitted(group))
