"""Recipe + source -> job: everything that the blocks' work reads, opened, gathered and decided."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import UsageError
from ..core.progress import Progress
from ..core.recipe import Recipe
from ..distributed.workers import ALONE, Workers
from ..machine.device import pick_device
from ..model.blocks import BlockSource
from ..model.source import Source, check_same, open_source
from ..statistics.calibration import Calibration
from ..statistics.store import Statistics
from ..storage.byte_size import NO_LIMITS, MemoryLimits
from .gathered import Context, gathered
from .job import Job
from .memory_plan import Room
from .ranks import allocate, check_settled, statistics_kinds


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
        progress: receives stages.
        workers: the processes that share the job; all call this alike.

    Raises:
        UsageError, InputError, ResourceError: as the stages say.
    """
    check_settled(recipe)
    source = source or open_source(recipe.model, progress)
    room = Room(limits.process, limits.device, scratch or Path(tempfile.gettempdir()))
    context = Context(recipe, source, pick_device(device, workers), room, progress, workers)
    with gathered(context, statistics) as dense:
        calibration, update = dense.calibration, dense.update_calibration
        plan = allocate(recipe, dense.method, dense.blocks, calibration, dense.statistics, progress, workers)
        yield Job(
            recipe=recipe,
            method=dense.method,
            source=source,
            blocks=dense.blocks,
            calibration=calibration,
            update_calibration=update,
            statistics=dense.statistics,
            plan=plan,
            memory=dense.memory,
            workers=workers,
        )


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
        progress: receives stages.
        workers: the processes that share the work; all call this alike.

    Returns:
        The kinds that are there now.

    Raises:
        UsageError: a kind that the method does not read, or a folder made from something else.
        InputError, ResourceError: as the stages say.
    """
    known = statistics_kinds(recipe)
    chosen = tuple(dict.fromkeys(known if kinds is None else kinds))
    for kind in chosen:
        if kind not in known:
            reads = " and ".join(known) or "none"
            raise UsageError(f"kind {kind!r}: method {recipe.method} reads statistics of kind {reads}")
    beside = next(parent for parent in folder.absolute().parents if parent.is_dir())
    room = Room(limits.process, limits.device, beside)
    source = workers.main_process_first(lambda: open_source(recipe.model, progress))
    check_same(source, workers)
    context = Context(recipe, source, pick_device(device, workers), room, progress, workers)
    with gathered(context, folder, chosen):
        return chosen


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
        progress: receives stages.

    Raises:
        UsageError, InputError, ResourceError: as the stages say.
    """
    room = Room(limits.process, limits.device, folder.absolute().parent)
    context = Context(recipe, source, pick_device(device, ALONE), room, progress)
    with gathered(context, folder) as dense:
        assert dense.calibration is not None
        yield dense.blocks, dense.calibration, dense.statistics
