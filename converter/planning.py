"""Recipe + source -> rank plan: everything that is decided before any work is done."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .allocation.adacr import adacr, normalise
from .allocation.block_error import block_error
from .allocation.candidate_cut import TENTHS, candidate_cut, measured_retentions, stable_rank_scores
from .allocation.plan import LinearShape, RankPlan
from .allocation.rank_multiple import DEFAULT_MULTIPLE, choose_rank_multiple
from .allocation.rounding import round_ranks
from .allocation.threshold import threshold
from .allocation.type_loss import type_loss
from .allocation.uniform import uniform
from .checkpoint.folder import load, load_tokenizer
from .errors import InputError, UsageError
from .factors.whitening import OutputRoot, gradient_metric
from .machine.activations import Keep
from .machine.device import DTYPES, computes_bfloat16, fast_matmul, pick_device
from .machine.memory import exempt_loaded, release_freed
from .machine.memory_forecast import Windows
from .machine.memory_plan import MemoryPlan, check_by_trial, gigabytes, plan_memory
from .machine.workers import ALONE, Workers
from .methods import METHODS, Method
from .model.architectures import InputGroup
from .model.blocks import BlockSource
from .model.source import Source, check_same, open_source
from .progress import Progress
from .recipe import Recipe, nearest
from .statistics.calibration import SELF, Calibration, calibrate, hold_out, sample_from_model
from .statistics.gathering import (
    GRADIENT,
    HELD_OUT,
    MEAN_ABS,
    ROWS,
    SIGMA,
    gather_dense,
    gather_fisher,
    gather_gradients,
)
from .statistics.moments import GroupMoments, Moment
from .statistics.sensitivity import block_similarities, loss_energies, stable_ranks
from .statistics.store import IDENTITY, Statistics, open_statistics
from .statistics.truncation_sensitivity import Alone, truncation_losses

CHUNK_TOKENS = 4096  # tokens per forward: large enough for the matmuls, small enough for memory


@dataclass(frozen=True)
class Room:
    """Memory that a job may take, in bytes, and the folder for what does not fit."""

    limit: int | None
    folder: Path


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
        return _held_out_chunks(calibration, self.workers) if calibration else []

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


def method_of(recipe: Recipe) -> Method:
    """The row of the method table, with what the recipe changes of it."""
    method = METHODS[recipe.method]
    two_sided = method.two_sided if recipe.truncation is None else recipe.truncation == "two-sided"
    alpha = method.alpha if recipe.alpha is None else recipe.alpha
    return replace(method, two_sided=two_sided, alpha=alpha, allocation=recipe.allocation or method.allocation)


@contextmanager
def prepared(
    recipe: Recipe,
    *,
    device: str,
    statistics: Path | None = None,
    source: Source | None = None,
    max_memory: int | None = None,
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
        max_memory: bytes that this process may take.
        scratch: a folder for activations that do not fit into that; by default the system's.
        progress: told about stages.
        workers: the processes that share the job; all call this alike.

    Raises:
        UsageError, InputError, ResourceError: as the stages say.
    """
    source = source or open_source(recipe.model, progress)
    room = Room(max_memory, scratch or Path(tempfile.gettempdir()))
    with _gathered(recipe, source, device, statistics, room, progress, workers) as found:
        method, blocks, calibration, store, memory = found
        with fast_matmul():
            plan = _allocate(recipe, method, blocks, calibration, store, progress, workers)
        update = None
        if recipe.update_calibration is not None:
            update = _calibration(recipe.update_calibration, recipe, source, blocks, progress, workers)
        yield Job(recipe, method, source, blocks, calibration, update, store, plan, memory, workers)


def rank_multiple_for(recipe: Recipe, source: Source, row_multiple: int) -> int:
    """The recipe's rank multiple, or where it leaves the choice what `choose_rank_multiple` says.

    Args:
        recipe: as asked.
        source: the dense model.
        row_multiple: what rows of the target's storage types are multiples of.
    """
    if recipe.rank_multiple is not None:
        return recipe.rank_multiple
    blocks = BlockSource(source.reader(), source.family, torch.device("cpu"), DTYPES[recipe.dtype])
    found = blocks.linear_shapes()
    kept = _excluded(recipe.keep_dense, list(found))
    shapes = [LinearShape(name, 0, *shape, recipe.layout) for name, shape in found.items() if name not in kept]
    return choose_rank_multiple(shapes, recipe.retention, row_multiple)


def gather_statistics(
    recipe: Recipe,
    folder: Path,
    kinds: Sequence[str] | None = None,
    *,
    device: str,
    max_memory: int | None = None,
    progress: Progress,
    workers: Workers = ALONE,
) -> tuple[str, ...]:
    """Fill a folder with the statistics that a recipe reads, for `prepared` of this recipe and others.

    Args:
        recipe: names model, calibration text and method.
        folder: filled; what is there already stays.
        kinds: of statistics; by default all that the method reads.
        device: "auto", "cpu", "cuda".
        max_memory: bytes that this process may take; activations that do not fit go to a file beside `folder`.
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
    room = Room(max_memory, next(parent for parent in folder.absolute().parents if parent.is_dir()))
    source = workers.in_turn(lambda: open_source(recipe.model, progress))
    check_same(source, workers)
    with _gathered(recipe, source, device, folder, room, progress, workers, wanted):
        return wanted


@contextmanager
def _gathered(
    recipe: Recipe,
    source: Source,
    device: str,
    folder: Path | None,
    room: Room,
    progress: Progress,
    workers: Workers,
    kinds: Sequence[str] | None = None,
) -> Iterator[tuple[Method, BlockSource, Calibration | None, Statistics, MemoryPlan]]:
    """What a recipe names, found, with the statistics that its method reads, or only those of `kinds`."""
    method = method_of(recipe)
    where = pick_device(device, workers)
    blocks = BlockSource(source.reader(), source.family, where, DTYPES[recipe.dtype], _in_bfloat16(recipe, where))
    exempt_loaded()
    _excluded(recipe.keep_dense, list(blocks.linear_shapes()))  # refused before any work
    if recipe.calibration == SELF:  # the model is sampled as a whole: refused before that
        sampled = Windows(recipe.windows, recipe.held_out, recipe.window_length, 1)
        plan_memory(recipe, method, blocks, sampled, room.limit, room.folder)
    calibration = None
    if method.needs_calibration or recipe.refine != "none":
        calibration = _calibration(recipe.calibration, recipe, source, blocks, progress, workers)
    windows = _sizes(recipe, calibration, workers)
    memory = plan_memory(recipe, method, blocks, windows, room.limit, room.folder)
    _try(memory, recipe, method, blocks, windows, progress)
    with open_statistics(None if calibration is None else folder, workers) as store:
        if calibration is not None:
            if folder is not None and workers.writes:
                store.claim(_identity(recipe, blocks, source, calibration))
            if folder is not None:
                workers.check_shared(folder / IDENTITY)
            with fast_matmul():
                chosen = statistics_kinds(recipe) if kinds is None else kinds
                _gather(recipe, chosen, blocks, calibration, store, memory.keep, progress, workers)
            workers.wait()  # for the writer's last file
        release_freed()
        yield method, blocks, calibration, store, memory


def _sizes(recipe: Recipe, calibration: Calibration | None, workers: Workers) -> Windows:
    """The windows of a process that has the most."""
    if calibration is None:
        return Windows(0, 0, 1, 1)
    fitted, length = calibration.windows.shape
    chunk = window_chunk(recipe, fitted, length)
    whole = chunk if recipe.calibration_reduction == "stack-of-batch" else 1
    shares = [-(-count // workers.count) for count in (-(-fitted // whole), len(calibration.held_out))]
    return Windows(min(fitted, shares[0] * whole), shares[1], length, chunk)


def _try(
    memory: MemoryPlan, recipe: Recipe, method: Method, blocks: BlockSource, windows: Windows, progress: Progress
) -> None:
    """Hold the forecast against one block, where there is a limit."""
    if memory.limit is None:
        return
    with fast_matmul():
        tokens = torch.zeros(max(1, windows.chunk_tokens // windows.length), windows.length, dtype=torch.int32)
        check_by_trial(memory, recipe, method, blocks, windows, tokens)
    release_freed()
    progress.note(f"at most {gigabytes(memory.peak)} of memory, by forecast and trial; activations {memory.holding}")


def statistics_kinds(recipe: Recipe) -> tuple[str, ...]:
    """Kinds of statistics that a recipe reads, each after those it is made from."""
    refining = ("gradients",) if recipe.refine != "none" else ()
    return tuple(dict.fromkeys([*method_of(recipe).statistics, *refining]))


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
        chunks, held_out = window_chunks(recipe, calibration, workers), _held_out_chunks(calibration, workers)
        gather_dense(blocks, chunks, held_out, store, progress, keep, workers)
    if "gradients" in kinds:
        windows = torch.from_numpy(calibration.windows[: recipe.gradient_windows])
        gather_gradients(blocks, windows, recipe.seed, store, progress, keep, workers)
    if "fisher" in kinds:
        windows = torch.from_numpy(calibration.windows[: recipe.gradient_windows])
        gather_fisher(blocks, windows, store, progress, keep, workers)
    for kind in alone:
        if kind in kinds:
            _truncation_losses(recipe, kind, blocks, calibration, store, progress, workers)


def _truncation_losses(
    recipe: Recipe,
    alone: Alone,
    blocks: BlockSource,
    calibration: Calibration,
    store: Statistics,
    progress: Progress,
    workers: Workers,
) -> tuple[dict[str, list[float]], float]:
    """Linear -> loss with it, or all of its block, truncated to each candidate; and that of the dense model."""
    windows = torch.from_numpy(calibration.windows[: recipe.sensitivity_windows])
    together = alone == "block-error"
    retentions = TENTHS if together else measured_retentions(recipe.retention)
    kept = _excluded(recipe.keep_dense, list(blocks.linear_shapes())) if together else frozenset[str]()
    return truncation_losses(
        blocks, windows, retentions, recipe.layout, store, progress, workers, alone=alone, keep_dense=kept
    )


def window_chunks(recipe: Recipe, calibration: Calibration, workers: Workers = ALONE) -> list[Tensor]:
    """This process's shuffled calibration windows in chunks: buckets for stack-of-batch, which stay whole, else as many
    as memory likes."""
    windows = calibration.windows
    order = np.random.default_rng(recipe.seed).permutation(len(windows)).tolist()
    size = window_chunk(recipe, *windows.shape)
    if recipe.calibration_reduction == "stack-of-batch":
        chosen = workers.part(_cut(order, size))
    else:
        chosen = _cut(workers.part(order), size)
    return [torch.from_numpy(windows[numbers]) for numbers in chosen]


def _cut(numbers: Sequence[int], size: int) -> Sequence[Sequence[int]]:
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]


def window_chunk(recipe: Recipe, windows: int, length: int) -> int:
    """Windows per chunk."""
    if recipe.calibration_reduction == "stack-of-batch":
        return -(-windows // min(recipe.buckets, windows))
    return max(1, CHUNK_TOKENS // length)


def _held_out_chunks(calibration: Calibration, workers: Workers) -> list[Tensor]:
    """This process's held-out windows in one chunk; those who have fewer others take more of these."""
    chosen = workers.part(range(len(calibration.held_out)), larger_first=True)
    return [torch.from_numpy(calibration.held_out[list(chosen)])] if chosen else []


def _calibration(
    text: str, recipe: Recipe, source: Source, blocks: BlockSource, progress: Progress, workers: Workers
) -> Calibration:
    """Windows of a text; the writer alone reads it."""
    return workers.from_writer(lambda: _drawn(text, recipe, source, blocks, progress))


def _drawn(text: str, recipe: Recipe, source: Source, blocks: BlockSource, progress: Progress) -> Calibration:
    tokenizer = load_tokenizer(source.path)
    options = {
        "windows": recipe.windows,
        "length": recipe.window_length,
        "held_out": recipe.held_out,
        "seed": recipe.seed,
    }
    if text == SELF:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        model = load(source.path, device=str(blocks.device), dtype=blocks.dtype)
        drawn = sample_from_model(model, start=int(start or 0), progress=progress, **options)
    else:
        drawn = calibrate(text, tokenizer, **options)
    if drawn.windows.shape[1] > blocks.window_limit:
        raise InputError(
            f"{recipe.model}: attends over {blocks.window_limit} tokens, fewer than the window length "
            f"{drawn.windows.shape[1]}; use a smaller --window-length"
        )
    # what tells a refinement when to stop must not have been fitted in closed form either
    return drawn if recipe.refine == "none" else hold_out(drawn)


def _allocate(
    recipe: Recipe,
    method: Method,
    blocks: BlockSource,
    calibration: Calibration | None,
    store: Statistics,
    progress: Progress,
    workers: Workers,
) -> RankPlan:
    per_block = len(blocks.family.linears)
    shapes = [
        LinearShape(name, index // per_block, *shape, recipe.layout)
        for index, (name, shape) in enumerate(blocks.linear_shapes().items())
    ]
    keep_dense = _excluded(recipe.keep_dense, [shape.name for shape in shapes])
    counted = [shape for shape in shapes if shape.name not in keep_dense]
    wanted, importance = _wanted(recipe, method, blocks, calibration, store, progress, workers, counted)
    retentions = dict(zip([shape.name for shape in counted], wanted, strict=True))
    return workers.from_writer(  # one plan, even where machines round differently
        lambda: round_ranks(
            shapes,
            [retentions.get(shape.name, 1.0) for shape in shapes],
            target=recipe.retention,
            rank_multiple=recipe.rank_multiple or DEFAULT_MULTIPLE,
            keep_dense=keep_dense,
            tolerance=method.tolerance,
            importance=importance,
        )
    )


def _wanted(
    recipe: Recipe,
    method: Method,
    blocks: BlockSource,
    calibration: Calibration | None,
    store: Statistics,
    progress: Progress,
    workers: Workers,
    shapes: list[LinearShape],
) -> tuple[list[float], tuple[float, ...]]:
    """Wanted retention per linear, and the importance of blocks where the allocation has one."""
    target, allocation = recipe.retention, method.allocation
    if allocation == "uniform":
        return uniform(shapes, target), ()
    if allocation == "stable-rank":
        ranks = stable_ranks(blocks, progress, workers)
        return candidate_cut(shapes, [stable_rank_scores(ranks[s.name], TENTHS) for s in shapes], TENTHS, target), ()
    assert calibration is not None
    if allocation == "adacr":
        importance = normalise(block_similarities(blocks, calibration, recipe.similarity, progress, workers))
        return adacr(shapes, importance, target, recipe.min_retention), importance
    if allocation == "threshold":
        energies = loss_energies(blocks, store, "gradients", progress, workers)
        return threshold(shapes, [energies[shape.name] for shape in shapes], target), ()
    if allocation == "type-loss":
        energies = loss_energies(blocks, store, "dense", progress, workers)
        losses = [_summed_loss(shape, energies[shape.name], target, calibration) for shape in shapes]
        types = [blocks.family.linear_type(shape.name) for shape in shapes]
        return type_loss(shapes, types, losses, target), ()
    kind: Alone = "sensitivity" if allocation == "perplexity" else "block-error"
    measured, dense = _truncation_losses(recipe, kind, blocks, calibration, store, progress, workers)
    if kind == "block-error":
        errors = {shape.block: [*measured[shape.name], dense] for shape in shapes}
        return block_error(shapes, errors, (*TENTHS, 1.0), target), ()
    scores = [measured[shape.name] for shape in shapes]
    return candidate_cut(shapes, scores, measured_retentions(target), target), ()


def _summed_loss(shape: LinearShape, energies: Tensor, retention: float, calibration: Calibration) -> float:
    """||(W - U V^T) X||_F over all calibration tokens of the truncation to a retention."""
    rank = max(1, int(shape.rank_for(retention)))
    return math.sqrt(calibration.windows.size * float(energies[rank:].sum()))


def _excluded(patterns: tuple[str, ...], names: list[str]) -> frozenset[str]:
    excluded: set[str] = set()
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"*{pattern}")]
        if not matched:
            raise UsageError(f"--keep-dense {pattern!r}: matches no linear{nearest(pattern, names[:7])}")
        excluded.update(matched)
    return frozenset(excluded)
