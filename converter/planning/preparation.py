"""Recipe + source -> job: everything that the blocks' work wants, found, gathered and decided."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..allocation.plan import RankPlan
from ..core.errors import UsageError
from ..core.progress import Progress
from ..core.recipe import Recipe
from ..distributed.workers import ALONE, Workers
from ..factors.whitening import OutputRoot, gradient_metric
from ..families.family import InputGroup
from ..machine.device import DTYPES, computes_bfloat16, pick_device
from ..machine.device_memory import device_errors
from ..machine.float32 import float32_products
from ..machine.memory import exempt_loaded, release_freed
from ..methods import Method
from ..model.activations import Keep
from ..model.blocks import BlockSource
from ..model.source import Source, check_same, open_source
from ..statistics.calibration import Calibration
from ..statistics.gathering import (
    GRADIENT,
    HELD_OUT,
    MEAN_ABS,
    ROWS,
    SIGMA,
    gather_dense,
    gather_fisher,
    gather_gradients,
)
from ..statistics.mixture import samples
from ..statistics.moments import GroupMoments, Moment
from ..statistics.store import IDENTITY, Statistics, open_statistics
from ..statistics.truncation_sensitivity import Alone
from ..statistics.window_chunks import draw_windows, held_out_chunks, window_chunks, window_sizes
from ..storage.byte_size import NO_LIMITS, MemoryLimits
from .memory_forecast import Windows
from .memory_plan import MemoryPlan, Room, check_by_trial, gigabytes, plan_memory
from .ranks import allocate, check_settled, kept_dense, losses_alone, method_of, statistics_kinds

ADVICE = "add a lower --max-device-memory, use fewer or shorter --windows, or --device cpu; finished work is kept"
"""Where a GPU's memory was too little in spite of the plan."""


@dataclass(frozen=True)
class Job:
    """A recipe with everything it names found and decided.

    Attributes:
        recipe: as asked.
        method: its row of the method table, with what the recipe changes of it.
        source: the dense model.
        blocks: its weights, block by block.
        calibration: token windows; None for a method that needs none.
        update_calibration: token windows of the compressed stream, where they are not those of `calibration`.
        statistics: of the dense model; those that the method needs are there.
        plan: ranks of every linear.
        memory: how activations are held, and the forecast.
        workers: the processes that share the job.
    """

    recipe: Recipe
    method: Method
    source: Source
    blocks: BlockSource
    calibration: Calibration | None
    update_calibration: Calibration | None
    statistics: Statistics
    plan: RankPlan
    memory: MemoryPlan
    workers: Workers = ALONE

    @property
    def refines(self) -> bool:
        """Whether gradient descent follows the closed forms."""
        return self.recipe.refine != "none"

    @property
    def keep(self) -> Keep:
        """Where activations lie between blocks."""
        return self.memory.keep

    @property
    def chunks(self) -> list[Tensor]:
        """This process's calibration windows as the compressed stream and, where both run, the dense one run them."""
        calibration = self.update_calibration or self.calibration
        return window_chunks(self.recipe, calibration, self.workers) if calibration else []

    @property
    def held_out_chunks(self) -> list[Tensor]:
        """This process's windows that no factor is fitted on."""
        calibration = self.update_calibration or self.calibration
        return held_out_chunks(calibration, self.workers) if calibration else []

    @property
    def windows(self) -> tuple[Tensor, int]:
        """Token ids (N, T) of the windows of all processes, in their order, and how many are not held out."""
        calibration = self.update_calibration or self.calibration
        assert calibration is not None
        fitted = torch.cat(window_chunks(self.recipe, calibration))
        return torch.cat([fitted, torch.from_numpy(calibration.held_out)]), len(fitted)

    def dense_moments(self, block: int, group: InputGroup) -> GroupMoments:
        """Moments of an input group, with those of the dense model where the method sees them."""
        moments = GroupMoments()
        if self.method.needs_dense_moments:
            wanted = [SIGMA + group.name, MEAN_ABS + group.name]
            if not (self.method.needs_compressed_stream or self.refines):
                wanted.append(HELD_OUT + group.name)
            found = self.statistics.read("dense", block, self.blocks.device, wanted.__contains__)
            moments.dense, moments.mean_abs = Moment(found[wanted[0]], tokens=1), found[wanted[1]]
            if HELD_OUT + group.name in found:
                moments.held_out = Moment(found[HELD_OUT + group.name], tokens=1)
        return moments

    def output_root(self, block: int, linear: str) -> OutputRoot:
        """R of a linear (path inside the block), where gradients were gathered."""
        read = self.statistics.read_one
        # in one expression: G is let go before its root is taken
        return OutputRoot(gradient_metric(read("gradients", block, self.blocks.device, GRADIENT + linear)).root)

    def fisher(self, block: int) -> dict[str, Tensor]:
        """Linear (path inside the block) -> Fisher information per input feature, where the truncation sees it."""
        if not self.method.needs_fisher:
            return {}
        found = self.statistics.read("fisher", block, self.blocks.device)
        return {name.removeprefix(ROWS): rows for name, rows in found.items()}


@contextmanager
def prepared(
    recipe: Recipe,
    *,
    device: str,
    statistics: Path | None = None,
    source: Source | None = None,
    limits: MemoryLimits = NO_LIMITS,
    scratch: Path | None = None,
    progress: Progress,
    workers: Workers = ALONE,
) -> Iterator[Job]:
    """Open the source, draw the calibration windows, gather statistics of the dense model, allocate ranks.

    Args:
        recipe: what to do.
        device: "auto", "cpu", "cuda".
        statistics: a folder to keep statistics in; by default a temporary one, removed when the context ends.
        source: the recipe's model, where it is open already.
        limits: memory that this process may take; of its GPU by default what is free there.
        scratch: a folder for activations that do not fit into that; by default the system's.
        progress: told about stages.
        workers: the processes that share the job; all call this alike.

    Raises:
        UsageError, InputError, ResourceError: as the stages say.
    """
    check_settled(recipe)
    source = source or open_source(recipe.model, progress)
    room = Room(limits.process, limits.device, scratch or Path(tempfile.gettempdir()))
    where = pick_device(device, workers)
    with (
        device_errors(where, ADVICE),
        float32_products(where, fast=True),
        _gathered(recipe, source, where, statistics, room, progress, workers) as found,
    ):
        method, blocks, calibration, update, store, memory = found
        plan = allocate(recipe, method, blocks, calibration, store, progress, workers)
        yield Job(recipe, method, source, blocks, calibration, update, store, plan, memory, workers)


def gather_statistics(
    recipe: Recipe,
    folder: Path,
    kinds: Sequence[str] | None = None,
    *,
    device: str,
    limits: MemoryLimits = NO_LIMITS,
    progress: Progress,
    workers: Workers = ALONE,
) -> tuple[str, ...]:
    """Fill a folder with the statistics that a recipe reads, for `prepared` of this recipe and others.

    Args:
        recipe: names model, calibration text and method.
        folder: filled; what is there already stays.
        kinds: of statistics; by default all that the method reads.
        device: "auto", "cpu", "cuda".
        limits: memory that this process may take, of its GPU by default what is free there; activations that do not
            fit go to a file beside `folder`.
        progress: told about stages.
        workers: the processes that share the work; all call this alike.

    Returns:
        The kinds that are there now.

    Raises:
        UsageError: a kind that the method does not read, or a folder made from something else.
        InputError, ResourceError: as the stages say.
    """
    known = statistics_kinds(recipe)
    wanted = tuple(dict.fromkeys(known if kinds is None else kinds))
    for kind in wanted:
        if kind not in known:
            reads = " and ".join(known) or "none"
            raise UsageError(f"kind {kind!r}: method {recipe.method} reads statistics of kind {reads}")
    beside = next(parent for parent in folder.absolute().parents if parent.is_dir())
    room = Room(limits.process, limits.device, beside)
    source = workers.main_process_first(lambda: open_source(recipe.model, progress))
    check_same(source, workers)
    where = pick_device(device, workers)
    with (
        device_errors(where, ADVICE),
        float32_products(where, fast=True),
        _gathered(recipe, source, where, folder, room, progress, workers, wanted),
    ):
        return wanted


@contextmanager
def dense_statistics(
    recipe: Recipe,
    folder: Path,
    *,
    source: Source,
    device: str,
    limits: MemoryLimits = NO_LIMITS,
    progress: Progress,
) -> Iterator[tuple[BlockSource, Calibration, Statistics]]:
    """The dense model, the windows of a recipe, and the statistics that its method reads; no ranks are chosen.

    Args:
        recipe: of a method that reads calibration text.
        folder: statistics are kept there.
        source: the recipe's model.
        device: "auto", "cpu", "cuda".
        limits: see `prepared`.
        progress: told about stages.

    Raises:
        UsageError, InputError, ResourceError: as the stages say.
    """
    where, room = pick_device(device, ALONE), Room(limits.process, limits.device, folder.absolute().parent)
    with (
        device_errors(where, ADVICE),
        float32_products(where, fast=True),
        _gathered(recipe, source, where, folder, room, progress, ALONE) as (_, blocks, calibration, _, store, _),
    ):
        assert calibration is not None
        yield blocks, calibration, store


@contextmanager
def _gathered(
    recipe: Recipe,
    source: Source,
    device: torch.device,
    folder: Path | None,
    room: Room,
    progress: Progress,
    workers: Workers,
    kinds: Sequence[str] | None = None,
) -> Iterator[tuple[Method, BlockSource, Calibration | None, Calibration | None, Statistics, MemoryPlan]]:
    """What a recipe names found, texts too, with the statistics that its method reads, or only those of `kinds`."""
    method = method_of(recipe)
    blocks = BlockSource(source.reader(), source.family, device, DTYPES[recipe.dtype], _in_bfloat16(recipe, device))
    exempt_loaded()
    kept_dense(recipe.keep_dense, list(blocks.linear_shapes()))  # refused before any work
    if samples(recipe.calibration):  # the model is sampled as a whole: refused before that
        sampled = Windows(recipe.windows, recipe.held_out, recipe.window_length, 1)
        plan_memory(recipe, method, blocks, sampled, room)
    calibration = update = None
    if method.needs_calibration or recipe.refine != "none":
        calibration = draw_windows("calibration", recipe, source, blocks, progress, workers)
    if recipe.update_calibration is not None and kinds is None:
        update = draw_windows("update_calibration", recipe, source, blocks, progress, workers)
    windows = window_sizes(recipe, calibration, workers)
    memory = plan_memory(recipe, method, blocks, windows, room)
    _try(memory, recipe, method, blocks, windows, progress)
    with open_statistics(None if calibration is None else folder, workers) as store:
        if calibration is not None:
            if folder is not None and workers.is_main_process:
                store.claim(_identity(recipe, blocks, source, calibration))
            if folder is not None:
                workers.check_shared(folder / IDENTITY)
            chosen = statistics_kinds(recipe) if kinds is None else kinds
            _gather(recipe, chosen, blocks, calibration, store, memory.keep, progress, workers)
            workers.wait()  # for the writer's last file
        release_freed()
        yield method, blocks, calibration, update, store, memory


def _try(
    memory: MemoryPlan, recipe: Recipe, method: Method, blocks: BlockSource, windows: Windows, progress: Progress
) -> None:
    """Hold the forecast against one block, where there is a limit, as there always is of a GPU."""
    if memory.limit is None and memory.device is None:
        return
    tokens = torch.zeros(max(1, windows.chunk_tokens // windows.length), windows.length, dtype=torch.int32)
    check_by_trial(memory, recipe, method, blocks, windows, tokens)
    release_freed()
    beside = "" if memory.device is None else f" and {gigabytes(memory.device.peak)} of {memory.device.device}"
    most = f"at most {gigabytes(memory.peak)} of memory{beside}, by forecast and trial"
    progress.note(f"{most}; activations {memory.holding}")


def _gather(
    recipe: Recipe,
    kinds: Sequence[str],
    blocks: BlockSource,
    calibration: Calibration,
    store: Statistics,
    keep: Keep,
    progress: Progress,
    workers: Workers,
) -> None:
    alone: tuple[Alone, ...] = ("sensitivity", "block-error")
    if not {"dense", *alone}.isdisjoint(kinds):
        chunks, held_out = window_chunks(recipe, calibration, workers), held_out_chunks(calibration, workers)
        gather_dense(blocks, chunks, held_out, store, progress, keep, workers)
    if "gradients" in kinds:
        windows = torch.from_numpy(calibration.windows[: recipe.gradient_windows])
        gather_gradients(blocks, windows, recipe.seed, store, progress, keep, workers)
    if "fisher" in kinds:
        windows = torch.from_numpy(calibration.windows[: recipe.gradient_windows])
        gather_fisher(blocks, windows, store, progress, keep, workers)
    for kind in alone:
        if kind in kinds:
            losses_alone(recipe, kind, blocks, calibration, store, progress, workers)


def _in_bfloat16(recipe: Recipe, device: torch.device) -> bool:
    """Whether forward passes multiply in bfloat16."""
    if recipe.activations == "auto":
        return recipe.dtype != "float16" and computes_bfloat16(device)
    return recipe.activations == "bfloat16"


def _identity(recipe: Recipe, blocks: BlockSource, source: Source, calibration: Calibration) -> dict[str, Any]:
    """Whatever changes the statistics of a model."""
    drawn = calibration.record()
    return {
        "source_sha256": source.fingerprint(),
        **{key: drawn[key] for key in ("windows", "window_length", "held_out", "seed")},
        "calibration_sha256": drawn["sha256"],
        "gradient_windows": recipe.gradient_windows,
        "sensitivity_windows": recipe.sensitivity_windows,
        "dtype": recipe.dtype,
        "activations": "bfloat16" if blocks.bfloat16 else "float32",
    }
