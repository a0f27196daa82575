"""Shapes + recipe -> the memory that each stage of a compression will have at its peak: arithmetic, before any work.

All figures are bytes, of tensors only: what Python and its libraries take besides is measured, see memory_plan.py. On a
GPU they are of its memory, and what the process has of the machine's is added up in host_forecast.py.
docs/large-models.md explains the terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..allocation.candidate_cut import TENTHS, measured_retentions
from ..core.recipe import Recipe
from ..methods import Method
from ..model.blocks import BlockSource
from ..statistics.gradients import CHUNK_WINDOWS
from ..statistics.gradients import HEAD_ROWS as GRADIENT_ROWS
from ..statistics.mixture import samples
from ..statistics.sensitivity import IMPORTANCE_WINDOWS
from ..storage.safetensors_header import WIDTHS
from ..training.refinement import BATCH_TOKENS

Holding = Literal["in memory", "repeated", "on the host", "on disk"]
"""How the activations of all windows are held while a block is compressed, from fast to small.

"in memory": one forward per block and stream, whose activations are in memory for all windows. "repeated": one forward
per input group, with the activations of one chunk of windows and the residual streams in memory. "on the host": so, and
the residual streams in the machine's memory, not the GPU's. "on disk": so, and the residual streams in a scratch file.
"""
HOLDINGS: tuple[Holding, ...] = ("in memory", "repeated", "on disk")
GPU_HOLDINGS: tuple[Holding, ...] = ("in memory", "repeated", "on the host", "on disk")
FLOAT, DOUBLE = 4, 8
COPYING = "embedding and head"
"""The stage that computes nothing, and so has nothing on a GPU."""


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


def model_shape(blocks: BlockSource) -> ModelShape:
    """The sizes of a model, read from headers."""
    family, reader = blocks.family, blocks.reader
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
    )


@dataclass(frozen=True)
class Windows:
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


@dataclass(frozen=True)
class Stage:
    """Bytes at the peak of one stage.

    Attributes:
        working: tensors of what is at work.
        kept: activations of all windows between two blocks, which lie where the holding says.
    """

    working: int
    kept: int = 0


@dataclass(frozen=True)
class Forecast:
    """Bytes at the peak of every stage, and on the disk.

    Attributes:
        memory: stage -> bytes of tensors, in the memory that is computed in.
        disk: bytes of scratch files at once.
        trial: bytes of what `trial_of_a_block` does.
        stages: what `memory` is made of.
    """

    memory: Mapping[str, int]
    disk: int
    trial: int
    stages: Mapping[str, Stage]

    @property
    def largest(self) -> str:
        """The stage with the highest peak."""
        return max(self.memory, key=self.memory.__getitem__)

    @property
    def peak(self) -> int:
        """Its bytes."""
        return self.memory[self.largest]


def forecast(recipe: Recipe, method: Method, shape: ModelShape, windows: Windows, holding: Holding) -> Forecast:
    """What each stage that a recipe has will have in memory.

    Args:
        recipe: what to do.
        method: its row of the method table, as changed by the recipe.
        shape: of the dense model.
        windows: of the calibration.
        holding: of activations.
    """
    sizes = _Sizes(recipe, method, shape, windows)
    stages = sizes.stages(asleep=holding == "in memory")
    here = holding in ("in memory", "repeated")
    memory = {name: stage.working + (stage.kept if here else 0) for name, stage in stages.items()}
    disk = max(stage.kept for stage in stages.values()) if holding == "on disk" else 0
    return Forecast(memory, disk, sizes.trial(), stages)


@dataclass(frozen=True)
class _Sizes:
    """The terms."""

    recipe: Recipe
    method: Method
    shape: ModelShape
    windows: Windows

    def stages(self, *, asleep: bool) -> dict[str, Stage]:
        """Stage -> its bytes.

        Args:
            asleep: whether the forwards of all windows sleep at every input group.
        """
        recipe, method, shape, windows = self.recipe, self.method, self.shape, self.windows
        refines = recipe.refine != "none"
        stream = windows.tokens * shape.hidden * shape.weight_bytes
        streams = 0
        if method.needs_compressed_stream or refines:
            streams = 2 if method.aligned or refines else 1
        stages = {}
        if samples(recipe.calibration):
            stages["sampling calibration text from the whole model"] = Stage(self.sampling())
        if not {"dense", "sensitivity", "block-error"}.isdisjoint(method.statistics):
            stages["activations of the dense model"] = Stage(self.dense_moments(), stream)
        if "gradients" in method.statistics or "fisher" in method.statistics or refines:
            gradient_stream = recipe.gradient_windows * windows.length * shape.hidden * shape.weight_bytes
            stages["gradients of the dense model"] = Stage(self.gradients(), (shape.blocks + 2) * gradient_stream)
        if method.allocation in ("threshold", "type-loss", "stable-rank"):
            stages["loss of every rank"] = Stage(self.spectra())
        if method.allocation == "adacr":
            window = windows.length * shape.hidden * shape.weight_bytes
            importance = shape.block + 2 * IMPORTANCE_WINDOWS * window + self.forward(windows.length)
            stages["block importance"] = Stage(importance)
        if method.allocation == "perplexity":
            count = len(shape.outputs) * len(measured_retentions(recipe.retention))
            stages["loss of truncating each linear alone"] = Stage(self.variants(count))
        if method.allocation == "block-error":
            factors = int(TENTHS[-1] * DOUBLE * shape.block_parameters)
            beside = shape.block + factors
            stages["loss of truncating each block alone"] = Stage(self.variants(len(TENTHS)) + beside)
        stages["compressing a block"] = Stage(self.compression(streams, asleep), streams * stream)
        if refines:
            stages["refining a block"] = Stage(self.block_refinement(), streams * stream)
        if recipe.refine == "model":
            stages["refining the whole model"] = Stage(self.model_refinement(), stream)
        stages[COPYING] = Stage(shape.largest_other * 2 * shape.weight_bytes)
        return stages

    def sampling(self) -> int:
        """The whole model, and keys and values of all windows."""
        shape, groups = self.shape, list(self.shape.groups)
        cached = sum(shape.outputs[name] for name in shape.groups[groups[0]]) - shape.inputs[groups[1]]
        windows = self.recipe.windows + self.recipe.held_out
        tokens = windows * self.recipe.window_length
        growing = (shape.blocks + 1) * tokens * cached  # a block's are copied when a token is added
        return (shape.model + growing + windows * shape.vocabulary) * shape.weight_bytes

    def moment(self, group: str) -> int:
        """An (n, n) matrix in float64."""
        return DOUBLE * self.shape.inputs[group] ** 2

    def forward(self, tokens: int) -> int:
        """Activations inside a block's forward at its worst moment, in attention or between gate, up and down."""
        shape = self.shape
        queries, widest = self.queries, max(shape.inputs.values())
        inside = tokens * FLOAT * max(2 * shape.hidden + 8 * queries, 2 * shape.hidden + 3 * widest)
        return inside + (2 * 2 * shape.largest_linear if shape.bfloat16 else 0)

    def backward(self, tokens: int) -> int:
        """Activations that a block's forward keeps for its backward, and the gradients of the largest."""
        shape = self.shape
        widest = max(shape.inputs.values())
        inside = tokens * FLOAT * (8 * shape.hidden + 10 * self.queries + 6 * widest)
        return inside + (2 * 2 * shape.block_parameters if shape.bfloat16 else 0)

    @property
    def queries(self) -> int:
        """Features of the queries of attention, of all heads."""
        first = next(iter(self.shape.groups.values()))
        return max(self.shape.hidden, self.shape.outputs[first[0]])

    def asleep(self, group: int) -> int:
        """What the forwards of one stream keep alive while they sleep at a group, beside the stream itself."""
        shape = self.shape
        names = list(shape.inputs)
        features = (shape.hidden, 2 * shape.hidden + 6 * self.queries, 2 * shape.hidden)
        held = features[group] if group < len(features) else 2 * shape.hidden + shape.inputs[names[group]]
        return self.windows.tokens * FLOAT * held

    def product(self, features: int, tokens: int) -> int:
        """What adding a chunk to a moment takes: the product, and the inputs or their difference, in float32."""
        return FLOAT * features * (features + tokens * (2 if self.shape.bfloat16 else 1))

    def singular(self, group: str) -> bool:
        """Whether a second moment cannot be regular, so that it is whitened by its eigenvectors."""
        return self.windows.fitted * self.windows.length < self.shape.inputs[group]

    def dense_moments(self) -> int:
        """Second moments of all input groups at once."""
        halves = 2 if self.windows.held_out else 1
        moments = sum(halves * self.moment(group) for group in self.shape.inputs)
        product = self.product(max(self.shape.inputs.values()), self.windows.chunk_tokens)
        return self.shape.block + moments + max(product, self.forward(self.windows.chunk_tokens))

    def gradients(self) -> int:
        """One block's backward and the moments of its gradients, or the head."""
        shape = self.shape
        tokens = min(CHUNK_WINDOWS, self.recipe.gradient_windows) * self.windows.length
        moments = sum(DOUBLE * out**2 for out in shape.outputs.values()) + sum(map(self.moment, shape.inputs))
        widest = max(*shape.outputs.values(), *shape.inputs.values())
        inside = shape.block + moments + self.backward(tokens) + self.product(widest, tokens)
        if not self.method.needs_gradients and self.recipe.refine == "none":  # Fisher's rows only
            inside = shape.block + self.backward(tokens) + 3 * FLOAT * shape.largest_linear
        head = shape.vocabulary * shape.hidden * (shape.weight_bytes + (2 if shape.bfloat16 else 0))
        logits = 5 * FLOAT * GRADIENT_ROWS * shape.vocabulary
        return max(inside, head + logits + 4 * tokens * shape.hidden * FLOAT)

    def spectra(self) -> int:
        """Both metrics and three copies of the largest linear of each group."""
        found = 0
        for group, names in self.shape.groups.items():
            n = self.shape.inputs[group]
            whitener = self.moment(group) * (5 if self.singular(group) else 2)
            for name in names:
                m = self.shape.outputs[name]
                outputs = 2 * DOUBLE * m * m if self.method.allocation == "threshold" else 0
                found = max(found, whitener + outputs + DOUBLE * (3 * m * n + 3 * min(m, n) ** 2))
        return self.shape.block + found

    def variants(self, count: int) -> int:
        """A residual stream per window of each of `count` variants of a block; forwards, fits, or the head."""
        shape = self.shape
        window = self.windows.length * shape.hidden * shape.weight_bytes
        kept = self.recipe.sensitivity_windows * window
        fits = max(
            self.moment(group) + self.fit(group, name) for group, names in self.shape.groups.items() for name in names
        )
        head = shape.vocabulary * (shape.hidden * shape.weight_bytes + 4 * FLOAT * GRADIENT_ROWS) + 3 * kept
        inside = max(self.forward(self.recipe.sensitivity_windows * self.windows.length), fits, head)
        return shape.block + (count + 1) * kept + inside

    def compression(self, streams: int, asleep: bool) -> int:
        """A block, the moments and metric of the group at work, and what its largest linear takes."""
        groups = list(self.shape.inputs)
        at_end = self.method.installs == "at end"
        found, waiting = 0, 0
        for number, group in enumerate(groups):
            held = streams * self.asleep(number) if asleep else 0
            blocks = max(1, streams) * self.shape.block
            gathered = self.gathered(group) + waiting
            forward = self.forward(self.windows.chunk_tokens) if streams else 0
            product = self.product(self.shape.inputs[group], self.windows.chunk_tokens) if streams else 0
            found = max(found, blocks + held + gathered + max(forward, product))
            if asleep and number + 1 < len(groups):
                fitting = blocks + held
            else:
                fitting = self.shape.block + (self.asleep(number) if asleep and streams else 0)
            waiting = gathered if at_end else 0
            found = max(found, fitting + self.fitted(group) + (gathered if at_end else 0))
        return found + self.ahead()

    def ahead(self) -> int:
        """Metrics of all groups and factors of a process's linears, where those of a block are truncated at once."""
        if self.windows.processes == 1 or self.method.metric == "compressed":
            return 0
        shape, metrics, entries = self.shape, 0, 0
        for group, names in shape.groups.items():
            rooted = any(shape.outputs[name] > shape.inputs[group] for name in names)
            metrics += self.moment(group) * (2 if rooted else 1) if self.method.needs_dense_moments else 0
            entries += sum(shape.outputs[name] * shape.inputs[group] for name in names)
        return metrics + DOUBLE * (entries // self.windows.processes + shape.largest_linear)

    def gathered(self, group: str) -> int:
        """Moments of a group."""
        return self.moment(group) * sum(self._counts().values()) + self.drift(group)

    def drift(self, group: str) -> int:
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
        drift, moment = self.drift(group), self.moment(group)
        narrow = drift < moment  # its regression is done with before the fit
        made = 2 * moment if drift else 0  # Sigma' damped, and L
        kept = self.gathered(group) + (moment if drift and not narrow else 0)
        if self.method.metric in ("activation-scale", "fisher-rows"):
            kept += self.moment(group)  # a diagonal, as a matrix
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
            whitener = self.moment(group) * (4 if self.singular(group) else 1)
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

    def block_refinement(self) -> int:
        """Targets and streams window by window; parameters, their gradients, two moments and the best so far."""
        targets = self.windows.tokens * self.shape.hidden * FLOAT
        return (
            3 * targets
            + 5 * FLOAT * self.shape.block_parameters
            + self.backward(max(BATCH_TOKENS, self.windows.length))
        )

    def model_refinement(self) -> int:
        """Parameters, their gradients, two moments and the best so far; the head once more."""
        state = FLOAT * (5 * self.shape.model + self.shape.vocabulary * self.shape.hidden)
        return state + self.backward(max(BATCH_TOKENS, self.windows.length))

    def trial(self) -> int:
        """A chunk's forward through a block, and the fit of the group with the most features."""
        group = max(self.shape.inputs, key=self.shape.inputs.__getitem__)
        gathered = self.gathered(group) + max(
            self.forward(self.windows.chunk_tokens),
            self.product(self.shape.inputs[group], self.windows.chunk_tokens),
        )
        return self.shape.block + max(gathered, self.fitted(group))
