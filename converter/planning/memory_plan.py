"""Limits on memory: what is done to stay below them, decided from the forecast and a trial before the work starts."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from ..core.errors import ResourceError, UsageError
from ..core.recipe import Recipe
from ..machine.device_memory import device_peak_of, free_memory, peak_of_device
from ..machine.memory import peak_memory, resident_memory
from ..methods import Method
from ..model.activations import Keep, OnDisk, OnHost, in_memory
from ..model.blocks import BlockSource
from .host_forecast import host_forecast
from .memory_forecast import COPYING, GPU_HOLDINGS, HOLDINGS, Holding, forecast
from .memory_trial import trial_of_a_block
from .model_shape import ModelShape, WindowSizes, model_shape

MARGIN = 1.1  # of the tensors: what allocator and libraries lose
LIBRARIES = 100 * 10**6  # bytes: code and buffers that the first products load
DEVICE_LIBRARIES = 500 * 10**6  # the same on a GPU: workspaces of cuBLAS and cuSOLVER, kernels loaded when first used
DISK_MARGIN = 1.02

Stages = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Room:
    """Memory that a job may take, in bytes, and the folder for what does not fit.

    Attributes:
        limit: of this process; None where nobody set one.
        device_limit: of its GPU; by default what is free there.
        folder: where scratch files may lie.
    """

    limit: int | None = None
    device_limit: int | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class DeviceMemory:
    """A GPU's part of the plan.

    Attributes:
        device: which.
        stages: stage -> bytes of it that this process has at its peak there, forecast.
        limit: bytes that this process may take of it.
        asked: whether the limit was asked for, or is what is free.
    """

    device: torch.device
    stages: Stages
    limit: int
    asked: bool

    @property
    def peak(self) -> int:
        """Forecast peak in bytes."""
        return max(bytes for _, bytes in self.stages)

    @property
    def bound(self) -> str:
        """The limit, in words."""
        return (
            f"--max-device-memory {gigabytes(self.limit)}"
            if self.asked
            else f"{self.device}: {gigabytes(self.limit)} are free"
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, beside the peak so far."""
        return {
            "name": str(self.device),
            "forecast_bytes": self.peak,
            "stages": dict(self.stages),
            "limit_bytes": self.limit,
            "peak_bytes": peak_of_device(self.device),
        }


@dataclass(frozen=True)
class MemoryPlan:
    """How a compression holds its activations, and what memory that takes.

    Attributes:
        holding: of activations, see memory_forecast.py.
        stages: stage -> bytes of this process at its peak there, forecast.
        scratch: bytes of scratch files on the disk.
        limit: bytes this process may take; None where nobody set one.
        folder: where scratch files lie.
        device: the GPU's memory, where one computes.
    """

    holding: Holding = "in memory"
    stages: Stages = ()
    scratch: int = 0
    limit: int | None = None
    folder: Path | None = None
    device: DeviceMemory | None = None

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
        if self.holding == "on disk" and self.folder is not None:
            return OnDisk(self.folder)
        return OnHost() if self.holding == "on the host" else in_memory

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, beside the peak of this process so far."""
        return {
            "activations": self.holding,
            "forecast_bytes": self.peak,
            "stages": dict(self.stages),
            "scratch_bytes": self.scratch,
            "limit_bytes": self.limit,
            "peak_bytes": peak_memory(),
            "device": None if self.device is None else self.device.to_json(),
        }

    def lines(self) -> list[str]:
        """The forecast of every stage, in words."""
        gpu = {} if self.device is None else dict(self.device.stages)
        beside = {stage: f", {gigabytes(bytes)} of {self.device.device}" for stage, bytes in gpu.items() if self.device}
        stages = [f"  {stage}: {gigabytes(bytes)}{beside.get(stage, '')}" for stage, bytes in self.stages]
        scratch = f", {gigabytes(self.scratch)} of disk beside" if self.scratch else ""
        return [f"Memory at the peak of each stage, activations {self.holding}{scratch}:", *stages]

    def line(self) -> str:
        """The forecast and the peak so far, in words."""
        limit = "" if self.limit is None else f", limit {gigabytes(self.limit)}"
        where = "" if self.holding == "in memory" else f"; activations {self.holding}"
        said = f"peak memory {gigabytes(peak_memory())}, forecast {gigabytes(self.peak)}{limit}"
        if self.device is not None:
            gpu = self.device
            said += f"; of {gpu.device} {gigabytes(peak_of_device(gpu.device))}, forecast {gigabytes(gpu.peak)}"
            said += f", {'limit' if gpu.asked else 'free'} {gigabytes(gpu.limit)}"
        return said + where


def plan_memory(recipe: Recipe, method: Method, blocks: BlockSource, windows: WindowSizes, room: Room) -> MemoryPlan:
    """The fastest way of holding activations whose forecast is within the limits; without a limit, the fastest.

    Args:
        recipe: what to do.
        method: its row of the method table, as changed by the recipe.
        blocks: the dense model, and the device that it is computed on.
        windows: of the calibration.
        room: limits, and where scratch files may lie.

    Raises:
        UsageError: a limit on a GPU's memory, and none computes.
        ResourceError: no way is within the limits, or the scratch file does not fit on the disk.
    """
    if room.device_limit is not None and blocks.device.type != "cuda":
        raise UsageError("--max-device-memory: is of a GPU, and this job runs on the CPU; use --max-memory")
    shape = model_shape(blocks)
    for plan in _plans(recipe, method, blocks.device, shape, windows, room):
        if (plan.limit is None or plan.peak <= plan.limit) and (
            plan.device is None or plan.device.peak <= plan.device.limit
        ):
            _check_disk(plan)
            return plan
    raise ResourceError(_too_little(recipe, plan, shape))


def _plans(
    recipe: Recipe, method: Method, device: torch.device, shape: ModelShape, windows: WindowSizes, room: Room
) -> Iterator[MemoryPlan]:
    """A plan per way of holding activations, from fast to small."""
    base, on_gpu = resident_memory() + LIBRARIES, device.type == "cuda"
    free = free_memory(device) if on_gpu else 0
    for holding in GPU_HOLDINGS if on_gpu else HOLDINGS:
        found = forecast(recipe, method, shape, windows, holding)
        if not on_gpu:
            yield MemoryPlan(holding, _with_margin(found.memory, base), found.disk, room.limit, room.folder)
            continue
        host = _with_margin(host_forecast(shape, windows, found.stages, holding), base)
        limit = free if room.device_limit is None else min(free, room.device_limit)
        asked = room.device_limit is not None and room.device_limit <= free
        there = {stage: bytes for stage, bytes in found.memory.items() if stage != COPYING}
        gpu = DeviceMemory(device, _with_margin(there, DEVICE_LIBRARIES), limit, asked)
        plan = MemoryPlan(holding, host, found.disk, room.limit, room.folder, gpu)
        if holding == "on the host" and plan.peak > base + psutil.virtual_memory().available:
            continue
        yield plan


def _with_margin(memory: Mapping[str, int], base: int) -> Stages:
    return tuple((stage, base + round(MARGIN * bytes)) for stage, bytes in memory.items())


def _too_little(recipe: Recipe, plan: MemoryPlan, shape: ModelShape) -> str:
    """What the limit would have to be, and what would lower it."""
    gpu = plan.device
    stages = plan.stages
    if gpu is not None and gpu.peak > gpu.limit:
        stages, limit, bound, where = gpu.stages, gpu.limit, gpu.bound, f" of {gpu.device}"
        allow = "allow that much" if gpu.asked else "free that much"
    else:
        assert plan.limit is not None
        limit, bound, where, allow = plan.limit, f"--max-memory {gigabytes(plan.limit)}", "", "allow that much"
    stage, peak = max(stages, key=lambda one: one[1])
    advice = ""
    if "whole model" in stage:
        advice = f", or leave out {'--calibration self' if 'sampling' in stage else '--refine model'}"
    elif "refining" in stage:
        advice = ", fewer --windows, or leave out --refine"
    elif "truncating" in stage:
        advice = ", or fewer --sensitivity-windows"
    elif shape.block > limit // 4:
        advice = ": one block alone is " + gigabytes(shape.block)
    elif recipe.window_length > 512 and stage != COPYING:
        advice = ", or a smaller --window-length"
    if where:
        advice += "; or use --device cpu"
    return f"{bound}: {stage} takes about {gigabytes(peak)}{where}, even with activations on the disk; {allow}{advice}"


def _check_disk(plan: MemoryPlan) -> None:
    if not plan.scratch or plan.folder is None:
        return
    free = shutil.disk_usage(plan.folder).free
    if free < DISK_MARGIN * plan.scratch:
        raise ResourceError(
            f"{plan.folder}: activations within the limits on memory take {gigabytes(plan.scratch)} of disk, and "
            f"{gigabytes(free)} are free; free some, or use fewer --windows"
        )


def check_by_trial(
    plan: MemoryPlan, recipe: Recipe, method: Method, blocks: BlockSource, windows: WindowSizes, chunk: Tensor
) -> None:
    """Run one chunk through a block and fit its widest group; what that takes must be what the forecast says.

    Args:
        plan: with a limit, or of a GPU.
        recipe, method, blocks, windows: as for `plan_memory`.
        chunk: token ids (B, T).

    Raises:
        ResourceError: the trial takes so much more that the job would go over the limit.
    """
    expected = round(MARGIN * forecast(recipe, method, model_shape(blocks), windows, plan.holding).trial)

    def trial() -> None:
        trial_of_a_block(recipe, method, blocks, windows, chunk)

    if plan.device is not None:
        taken, of, where = device_peak_of(blocks.device, trial), plan.device, f" of {blocks.device}"
        beyond, bound, peak, limit = taken - expected, of.bound, of.peak, of.limit
    else:
        assert plan.limit is not None
        taken, where = peak_of(trial), ""
        beyond, peak, limit = taken - (LIBRARIES + expected), plan.peak, plan.limit
        bound = f"--max-memory {gigabytes(limit)}"
    if peak + max(0, beyond) > limit:
        raise ResourceError(
            f"{bound}: a trial of one block took {gigabytes(taken)}{where}, {gigabytes(beyond)} more than forecast; "
            f"allow {gigabytes(peak + beyond)}"
        )


def peak_of(work: Callable[[], None]) -> int:
    """Bytes by which the resident memory of this process grows while `work` runs, at its peak.

    0 where an earlier peak of the process was higher: then nothing is known but that it was.
    """
    gc.collect()
    before, earlier = resident_memory(), peak_memory()
    work()
    return peak_memory() - before if peak_memory() > earlier else 0


def gigabytes(bytes: float) -> str:
    """For people, rounded up: what a message tells them to allow must be enough."""
    size = ceil(bytes)
    return f"{-(-size // 10**8) / 10} GB" if size > 999 * 10**6 else f"{-(-size // 10**6)} MB"
