"""What a recipe names, opened and gathered: the dense model block by block, calibration windows, statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.errors import InputError, naming
from ..core.progress import Progress
from ..core.recipe import Recipe
from ..distributed.workers import ALONE, Workers
from ..machine.device import DTYPES, computes_bfloat16
from ..machine.device_memory import device_errors
from ..machine.float32 import float32_products
from ..machine.memory import exempt_loaded, release_freed
from ..methods import Method
from ..model.blocks import BlockSource
from ..model.source import Source
from ..statistics.calibration import Calibration
from ..statistics.gathering import gather_dense, gather_fisher, gather_gradients
from ..statistics.mixture import samples
from ..statistics.store import IDENTITY, Statistics, open_statistics
from ..statistics.truncation_sensitivity import Alone
from ..statistics.window_chunks import draw_windows, held_out_chunks, window_chunks, window_sizes
from ..texts.pairs import names_pairs
from .experts_check import check_experts
from .memory_plan import MemoryPlan, Room, check_by_trial, gigabytes, plan_memory
from .model_shape import WindowSizes
from .ranks import check_whole_vocabulary, kept_dense, losses_alone, method_of, statistics_kinds

ADVICE = "add a lower --max-device-memory, use fewer or shorter --windows, or --device cpu; finished work is kept"
"""Where a GPU's memory was too little in spite of the plan."""


@dataclass(frozen=True)
class Context:
    """A recipe, and where it is worked on.

    Attributes:
        recipe: what to do.
        source: the dense model.
        device: that tensors are computed on.
        room: memory that the process may take, and a folder for what does not fit.
        progress: receives stages and notes.
        workers: the processes that share the job.
    """

    recipe: Recipe
    source: Source
    device: torch.device
    room: Room
    progress: Progress
    workers: Workers = ALONE


@dataclass(frozen=True)
class Gathered:
    """What was opened and gathered for a recipe.

    Attributes:
        method: its row of the method table, with what the recipe changes of it.
        blocks: the dense model, block by block.
        calibration: token windows; None for a method that needs none.
        update_calibration: token windows of the compressed stream, where they are not those of `calibration`.
        statistics: of the dense model; those that were asked for are there.
        memory: how activations are held, and the forecast.
    """

    method: Method
    blocks: BlockSource
    calibration: Calibration | None
    update_calibration: Calibration | None
    statistics: Statistics
    memory: MemoryPlan


@contextmanager
def gathered(context: Context, folder: Path | None, kinds: Sequence[str] | None = None) -> Iterator[Gathered]:
    """Open and gather what a recipe names; work inside the context has its arithmetic and its errors of the device.

    Args:
        context: the recipe, and where it is worked on.
        folder: statistics are kept there; without one, in a temporary folder.
        kinds: of statistics; by default all that the method reads.

    Raises:
        UsageError, InputError, ResourceError: as the stages say.
    """
    recipe, source, device = context.recipe, context.source, context.device
    check_whole_vocabulary(recipe)
    progress, workers = context.progress, context.workers
    check_experts(recipe, source.family)
    with device_errors(device, ADVICE), float32_products(device, fast=True):
        method = method_of(recipe)
        blocks = BlockSource(source.reader(), source.family, device, DTYPES[recipe.dtype], _in_bfloat16(recipe, device))
        exempt_loaded()
        kept_dense(recipe.keep_dense, list(blocks.linear_shapes()), blocks.family)  # refused before any work
        with naming("--calibration"):
            sampling = samples(recipe.calibration)
        if sampling:  # the model is sampled as a whole: refused before that
            sampled = WindowSizes(recipe.windows, recipe.held_out, recipe.window_length, 1)
            plan_memory(recipe, method, blocks, sampled, context.room)
        _check_labels(recipe, method)
        calibration = update = None
        if method.needs_calibration or recipe.refine != "none":
            calibration = draw_windows("calibration", recipe, source, blocks, progress, workers)
        if recipe.update_calibration is not None and kinds is None:
            update = draw_windows("update_calibration", recipe, source, blocks, progress, workers)
        windows = window_sizes(recipe, calibration, workers)
        memory = plan_memory(recipe, method, blocks, windows, context.room)
        _try(memory, recipe, method, blocks, windows, progress)
        with open_statistics(None if calibration is None else folder, workers) as statistics:
            found = Gathered(method, blocks, calibration, update, statistics, memory)
            if calibration is not None:
                if folder is not None and workers.is_main_process:
                    statistics.claim(_identity(recipe, blocks, source, calibration))
                if folder is not None:
                    workers.check_shared(folder / IDENTITY)
                _gather(context, found, calibration, statistics_kinds(recipe) if kinds is None else kinds)
                workers.barrier()  # for the writer's last file
            release_freed()
            yield found


def _try(
    memory: MemoryPlan, recipe: Recipe, method: Method, blocks: BlockSource, windows: WindowSizes, progress: Progress
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


def _gather(context: Context, found: Gathered, calibration: Calibration, kinds: Sequence[str]) -> None:
    recipe, progress, workers = context.recipe, context.progress, context.workers
    blocks, statistics, keep = found.blocks, found.statistics, found.memory.keep
    alone: tuple[Alone, ...] = ("sensitivity", "block-error")
    if not {"dense", *alone}.isdisjoint(kinds):
        chunks, held_out = window_chunks(recipe, calibration, workers), held_out_chunks(calibration, workers)
        gather_dense(blocks, chunks, held_out, statistics, progress, keep, workers)
    windows = torch.from_numpy(calibration.windows[: recipe.gradient_windows])
    if "gradients" in kinds:
        gather_gradients(blocks, windows, recipe.seed, statistics, progress, keep, workers)
    if "fisher" in kinds:
        gather_fisher(blocks, windows, statistics, progress, keep, workers)
    for kind in alone:
        if kind in kinds:
            losses_alone(recipe, kind, blocks, calibration, statistics, progress, workers)


def _check_labels(recipe: Recipe, method: Method) -> None:
    """Refuse pictures where a loss is taken against the next token of the text, which a picture's feature is not."""
    kinds = (method.needs_fisher, method.allocation in ("perplexity", "block-error"), recipe.refine == "model")
    what = "--refine model predicts" if kinds[2] else f"method {recipe.method} predicts"
    for option, text in (("calibration", recipe.calibration), ("update-calibration", recipe.update_calibration or "")):
        if any(kinds) and names_pairs(text):
            raise InputError(f"--{option} {text}: {what} its tokens; give a text without pictures")


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
