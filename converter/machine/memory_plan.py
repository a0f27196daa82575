"""A limit on memory: what is done to stay below it, decided from the forecast and a trial before the work starts."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ResourceError, UsageError
from ..factors.fit import fit_linear, group_metric
from ..factors.whitening import OutputRoot, gradient_metric
from ..methods import Method
from ..model.block_forward import StoppedForward, TappedBlock
from ..model.blocks import BlockSource
from ..recipe import Recipe
from ..statistics.moments import GroupMoments, Moment
from .activations import Keep, OnDisk, in_memory
from .memory import peak_memory, resident_memory
from .memory_forecast import HOLDINGS, Forecast, Holding, ModelShape, Windows, forecast, model_shape

MARGIN = 1.1  # of the tensors: what allocator and libraries lose
LIBRARIES = 100 * 10**6  # bytes: code and buffers that the first products load
DISK_MARGIN = 1.02


@dataclass(frozen=True)
class MemoryPlan:
    """How a compression holds its activations, and what memory that takes.

    Attributes:
        holding: of activations, see memory_forecast.py.
        stages: stage -> bytes of this process at its peak there, forecast.
        scratch: bytes of scratch files on the disk.
        limit: bytes this process may take; None where nobody set one.
        folder: where scratch files lie.
    """

    holding: Holding = "in memory"
    stages: tuple[tuple[str, int], ...] = ()
    scratch: int = 0
    limit: int | None = None
    folder: Path | None = None

    @property
    def peak(self) -> int:
        """Forecast peak of the process in bytes."""
        return max((bytes for _, bytes in self.stages), default=0)

    @property
    def repeats(self) -> bool:
        """Whether forwards are repeated for every input group."""
        return self.holding != "in memory"

    @property
    def keep(self) -> Keep:
        """Where activations lie between blocks."""
        return OnDisk(self.folder) if self.holding == "on disk" and self.folder is not None else in_memory

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, beside the peak of this process so far."""
        return {
            "activations": self.holding,
            "forecast_bytes": self.peak,
            "stages": dict(self.stages),
            "scratch_bytes": self.scratch,
            "limit_bytes": self.limit,
            "peak_bytes": peak_memory(),
        }

    def lines(self) -> list[str]:
        """The forecast of every stage, in words."""
        stages = [f"  {stage}: {gigabytes(bytes)}" for stage, bytes in self.stages]
        scratch = f", {gigabytes(self.scratch)} of disk beside" if self.scratch else ""
        return [f"Memory at the peak of each stage, activations {self.holding}{scratch}:", *stages]

    def line(self) -> str:
        """The forecast and the peak so far, in words."""
        limit = "" if self.limit is None else f", limit {gigabytes(self.limit)}"
        where = "" if self.holding == "in memory" else f"; activations {self.holding}"
        return f"peak memory {gigabytes(peak_memory())}, forecast {gigabytes(self.peak)}{limit}{where}"


def plan_memory(
    recipe: Recipe, method: Method, blocks: BlockSource, windows: Windows, limit: int | None, folder: Path | None
) -> MemoryPlan:
    """The fastest way of holding activations whose forecast is within the limit; without a limit, the fastest.

    Args:
        recipe: what to do.
        method: its row of the method table, as changed by the recipe.
        blocks: the dense model.
        windows: of the calibration.
        limit: bytes this process may take.
        folder: where scratch files may lie.

    Raises:
        UsageError: a limit on a GPU.
        ResourceError: no way is within the limit, or the scratch file does not fit on the disk.
    """
    if limit is not None and blocks.device.type != "cpu":
        raise UsageError("--max-memory: is a limit of the CPU's memory; add --device cpu, or leave it out")
    shape, base = model_shape(blocks), resident_memory() + LIBRARIES
    for holding in HOLDINGS:
        found = forecast(recipe, method, shape, windows, holding)
        stages = tuple((stage, base + round(MARGIN * bytes)) for stage, bytes in found.memory.items())
        made = MemoryPlan(holding, stages, found.disk, limit, folder)
        if limit is None or made.peak <= limit:
            _check_disk(made)
            return made
    raise ResourceError(_too_little(recipe, made, found, shape))


def _too_little(recipe: Recipe, plan: MemoryPlan, found: Forecast, shape: ModelShape) -> str:
    """What the limit would have to be, and what would lower it."""
    assert plan.limit is not None
    stage = found.largest
    advice = ""
    if "whole model" in stage:
        advice = f", or leave out {'--calibration self' if 'sampling' in stage else '--refine model'}"
    elif "refining" in stage:
        advice = ", fewer --windows, or leave out --refine"
    elif "truncating" in stage:
        advice = ", or fewer --sensitivity-windows"
    elif shape.block > plan.limit // 4:
        advice = ": one block alone is " + gigabytes(shape.block)
    elif recipe.window_length > 512 and "embedding" not in stage:
        advice = ", or a smaller --window-length"
    return (
        f"--max-memory {gigabytes(plan.limit)}: {stage} takes about {gigabytes(plan.peak)}, even with activations on "
        f"the disk; allow that much{advice}"
    )


def _check_disk(plan: MemoryPlan) -> None:
    if not plan.scratch or plan.folder is None:
        return
    free = shutil.disk_usage(plan.folder).free
    if free < DISK_MARGIN * plan.scratch:
        raise ResourceError(
            f"{plan.folder}: activations within --max-memory take {gigabytes(plan.scratch)} of disk, and "
            f"{gigabytes(free)} are free; free some, or use fewer --windows"
        )


def check_by_trial(
    plan: MemoryPlan, recipe: Recipe, method: Method, blocks: BlockSource, windows: Windows, chunk: Tensor
) -> None:
    """Run one chunk through a block and fit its widest group; what that takes must be what the forecast says.

    Args:
        plan: with a limit.
        recipe, method, blocks, windows: as for `plan_memory`.
        chunk: token ids (B, T).

    Raises:
        ResourceError: the trial takes so much more that the job would go over the limit.
    """
    assert plan.limit is not None
    expected = forecast(recipe, method, model_shape(blocks), windows, plan.holding).trial
    taken = peak_of(lambda: trial_of_a_block(recipe, method, blocks, windows, chunk))
    beyond = taken - (LIBRARIES + round(MARGIN * expected))
    if plan.peak + max(0, beyond) > plan.limit:
        raise ResourceError(
            f"--max-memory {gigabytes(plan.limit)}: a trial of one block took {gigabytes(taken)}, "
            f"{gigabytes(beyond)} more than forecast; allow {gigabytes(plan.peak + beyond)}"
        )


def peak_of(work: Callable[[], None]) -> int:
    """Bytes by which the resident memory of this process grows while `work` runs, at its peak.

    0 where an earlier peak of the process was higher: then nothing is known but that it was.
    """
    gc.collect()
    before, earlier = resident_memory(), peak_memory()
    work()
    return peak_memory() - before if peak_memory() > earlier else 0


@torch.no_grad()
def trial_of_a_block(recipe: Recipe, method: Method, blocks: BlockSource, windows: Windows, chunk: Tensor) -> None:
    """The forward of one chunk through the first block, and the fit of the largest linear of its widest group.

    The moments are made regular, so that they are whitened as those of many windows are.
    """
    block = blocks.block(0)
    stream = in_memory(blocks.embed([chunk]))
    tapped, forward = TappedBlock(block, blocks.family), StoppedForward(partial(blocks.run, block, stream[0]))
    shape = model_shape(blocks)
    widest = max(shape.inputs, key=shape.inputs.__getitem__)
    moments = GroupMoments()
    needs_compressed = method.needs_compressed_stream or recipe.refine != "none"
    for group in blocks.family.groups:
        y = forward.next_input()
        if group.name != widest:
            continue
        moments.mean_abs = y.abs().mean(dim=0).double()
        for moment, wanted in (
            (moments.dense, method.needs_dense_moments),
            (moments.compressed, needs_compressed),
            (moments.held_out, windows.held_out > 0),
        ):
            if wanted:
                moment.add(y)
                _make_regular(moment)
        if method.aligned:
            weight = tapped.linear(group.linears[0]).weight
            assert isinstance(weight, Tensor)
            if len(group.linears) == 1 and weight.shape[0] < weight.shape[1]:
                moments.output_drift.add_cross(blocks.project(weight, y), y)
            else:
                moments.drift.add_cross(y, y)
        names = group.linears
    forward.finish()
    del stream, forward, y
    metric = group_metric(method, moments, "moments")
    del moments
    name = max(names, key=shape.outputs.__getitem__)
    linear = tapped.linear(name)
    assert isinstance(linear, torch.nn.Linear)
    out, features = linear.weight.shape
    outputs = OutputRoot(gradient_metric(torch.eye(out, dtype=torch.float64)).root) if method.two_sided else None
    fisher = torch.ones(features, dtype=torch.float64) if method.needs_fisher else None
    rank = max(1, int(recipe.retention * out * features / (out + features)))
    fit_linear(linear.weight, rank, metric, iterations=recipe.iterations, outputs=outputs, fisher=fisher)


def _make_regular(moment: Moment) -> None:
    assert moment.total is not None
    moment.total.diagonal().add_(1.0)


def gigabytes(bytes: float) -> str:
    """For people, rounded up: what a message tells them to allow must be enough."""
    size = ceil(bytes)
    return f"{-(-size // 10**8) / 10} GB" if size > 999 * 10**6 else f"{-(-size // 10**6)} MB"
