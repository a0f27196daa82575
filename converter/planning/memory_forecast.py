"""Shapes + recipe -> the memory that each stage of a compression will have at its peak: arithmetic, before any work.

All figures are bytes, of tensors only: what Python and its libraries take besides is measured, see memory_plan.py. On a
GPU they are of its memory, and what the process has of the machine's is added up in host_forecast.py.
docs/large-models.md explains the terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..core.recipe import Recipe
from ..methods import Method
from ..statistics.mixture import samples
from ..training.refinement import BATCH_TOKENS
from .compression_memory import CompressionMemory
from .model_shape import FLOAT, ModelShape, WindowSizes
from .statistics_memory import StatisticsMemory

Holding = Literal["in memory", "repeated", "on the host", "on disk"]
"""How the activations of all windows are held while a block is compressed, from fast to small.

"in memory": one forward per block and stream, whose activations are in memory for all windows. "repeated": one forward
per input group, with the activations of one chunk of windows and the residual streams in memory. "on the host": so, and
the residual streams in the machine's memory, not the GPU's. "on disk": so, and the residual streams in a scratch file.
"""
HOLDINGS: tuple[Holding, ...] = ("in memory", "repeated", "on disk")
GPU_HOLDINGS: tuple[Holding, ...] = ("in memory", "repeated", "on the host", "on disk")
COPYING = "embedding and head"
"""The stage that computes nothing, and so has nothing on a GPU."""


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


def forecast(recipe: Recipe, method: Method, shape: ModelShape, windows: WindowSizes, holding: Holding) -> Forecast:
    """What each stage that a recipe has will have in memory.

    Args:
        recipe: what to do.
        method: its row of the method table, as changed by the recipe.
        shape: of the dense model.
        windows: of the calibration.
        holding: of activations.
    """
    compression = CompressionMemory(recipe, method, shape, windows)
    stages = {
        **_statistics_stages(StatisticsMemory(recipe, method, shape, windows)),
        **_compression_stages(compression, suspended=holding == "in memory"),
        COPYING: Stage(shape.largest_other * 2 * shape.weight_bytes),
    }
    here = holding in ("in memory", "repeated")
    memory = {name: stage.working + (stage.kept if here else 0) for name, stage in stages.items()}
    disk = max(stage.kept for stage in stages.values()) if holding == "on disk" else 0
    return Forecast(memory, disk, compression.trial(), stages)


def _statistics_stages(memory: StatisticsMemory) -> dict[str, Stage]:
    """Stage -> its bytes, of the passes over the dense model."""
    recipe, method, shape, windows = memory.recipe, memory.method, memory.shape, memory.windows
    per_token = shape.hidden * shape.weight_bytes
    stages = {}
    if samples(recipe.calibration):
        stages["sampling calibration text from the whole model"] = Stage(memory.sampling())
    if not {"dense", "sensitivity", "block-error"}.isdisjoint(method.statistics):
        stages["activations of the dense model"] = Stage(memory.dense_moments(), windows.tokens * per_token)
    if not {"gradients", "fisher"}.isdisjoint(method.statistics) or recipe.refine != "none":
        stream = recipe.gradient_windows * windows.length * per_token
        stages["gradients of the dense model"] = Stage(memory.gradients(), (shape.blocks + 2) * stream)
    if method.allocation in ("threshold", "type-loss", "stable-rank"):
        stages["loss of every rank"] = Stage(memory.spectra())
    if method.allocation == "adacr":
        stages["block importance"] = Stage(memory.block_importance())
    if method.allocation == "perplexity":
        stages["loss of truncating each linear alone"] = Stage(memory.truncated_linears())
    if method.allocation == "block-error":
        stages["loss of truncating each block alone"] = Stage(memory.truncated_blocks())
    return stages


def _compression_stages(memory: CompressionMemory, *, suspended: bool) -> dict[str, Stage]:
    """Stage -> its bytes, of the compression and what follows it.

    Args:
        suspended: whether the forwards of all windows are suspended at every input group.
    """
    recipe, method, shape, windows = memory.recipe, memory.method, memory.shape, memory.windows
    refines = recipe.refine != "none"
    stream = windows.tokens * shape.hidden * shape.weight_bytes
    streams = 0
    if method.needs_compressed_stream or refines:
        streams = 2 if method.aligned or refines else 1
    stages = {"compressing a block": Stage(memory.compression(streams, suspended), streams * stream)}
    if refines:
        stages["refining a block"] = Stage(_block_refinement(shape, windows), streams * stream)
    if recipe.refine == "model":
        stages["refining the whole model"] = Stage(_model_refinement(shape, windows), stream)
    return stages


def _block_refinement(shape: ModelShape, windows: WindowSizes) -> int:
    """Targets and streams window by window; parameters, their gradients, two moments and the best so far."""
    targets = windows.tokens * shape.hidden * FLOAT
    state = 5 * FLOAT * shape.block_parameters
    return 3 * targets + state + shape.backward(max(BATCH_TOKENS, windows.length))


def _model_refinement(shape: ModelShape, windows: WindowSizes) -> int:
    """Parameters, their gradients, two moments and the best so far; the head once more."""
    state = FLOAT * (5 * shape.model + shape.vocabulary * shape.hidden)
    return state + shape.backward(max(BATCH_TOKENS, windows.length))
