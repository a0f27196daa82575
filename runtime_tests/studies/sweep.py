"""Methods x retentions x types on one model: each exported and measured in its runtime, beside plain quantization.

DIR/rows/       a result per method, retention and type; those that are there are not made again
DIR/statistics/ of the dense model, shared by the methods; removed at the end
DIR/.work/      one checkpoint and one export at a time
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...converter.core.progress import Advance, Progress, SilentProgress
from ...converter.core.recipe import Recipe, in_common
from ...converter.storage.byte_size import NO_LIMITS, MemoryLimits
from ...converter.storage.files import remove
from ...exporters.artifact import to_document
from ...exporters.budget.sized import planned
from ...exporters.export import export
from ...exporters.registry import TARGETS
from ...exporters.target import ExportRequest, Given
from ..backends.formats import TORCH, backend_names
from ..evaluation import Evaluation
from ..metrics.measure import measure
from ..metrics.perplexity import Perplexity, perplexity
from ..metrics.reference_logits import ReferenceLogits
from ..settings import DEFAULTS
from ..timing.speed import Speed, measure_speed
from .grid import Grid, open_grid
from .rows import read_row, restored, write_row
from .sweep_page import sweep_page
from .sweep_results import AWARE, PLAIN, SIZED, Sweep, SweepRow

NAME = "sweep"


def sweep(
    recipes: Sequence[Recipe],
    exports: Sequence[ExportRequest],
    out: Path,
    *,
    evaluation: Evaluation,
    device: str = "auto",
    limits: MemoryLimits = NO_LIMITS,
    force: bool = False,
    progress: Progress | None = None,
) -> Sweep:
    """Compress by every recipe, export in every type, measure; the dense model in every type too.

    Rows that are there already, of equal recipe and evaluation, are not made again. Writes sweep.json and sweep.html.

    Args:
        recipes: from `recipe_grid`: alike but for method and retention; those with a size have rank and type of every
            linear chosen together, in every format among the exports.
        exports: what each of the others is exported as.
        out: the folder to make.
        evaluation: text and size of the measurement; every export is timed alone where it asks for speed.
        device: of the compression.
        limits: memory that a compression may take; of its GPU by default what is free there.
        force: start over, replacing what is there.
        progress: receives a step per row.

    Raises:
        UsageError: `out` holds something else, or rows made from something else, and `force` is not set.
        InputError, ResourceError: from the stages; finished rows are kept.
    """
    grid = open_grid(
        recipes, out, evaluation=evaluation, device=device, limits=limits, progress=progress, exports=exports
    )
    if force:
        grid.start_over(f"{NAME}.json", f"{NAME}.html")
    columns = _columns(recipes, exports)
    todo = [(recipe, _missing(grid, recipe, requests)) for recipe, requests in columns]
    total = sum(len(requests) for _, requests in todo)
    if total or read_row(_file(grid, None, None), _key(grid, None, None)) is None:
        with grid.working(NAME, 1 + total) as (work, advance), _dense_logits(grid, work) as dense:
            advance(1)
            for recipe, requests in todo:
                if requests:
                    _fill(grid, recipe, requests, dense, work, advance)
    remove(grid.statistics)
    result = _collected(grid, columns)
    grid.write(NAME, result.to_json(), sweep_page(result))
    return result


Columns = Sequence[tuple[Recipe | None, Sequence[ExportRequest]]]
"""Recipe -> its exports; None for the dense model."""


def _columns(recipes: Sequence[Recipe], exports: Sequence[ExportRequest]) -> Columns:
    """Plain quantization first, then every recipe in every type, then every size in its own.

    Beside sizes, whose rounding runs a text, stands plain quantization that does so too.
    """
    formats = dict.fromkeys(request.format for request in exports)
    by_size = [request for format in formats if (request := TARGETS[format].sized_request(Given({}))) is not None]
    sized = [(recipe, [request]) for recipe in recipes if recipe.sized for request in by_size]
    aware = [found for request in exports if (found := request.aware()) is not None] if sized else []
    return [(None, [*exports, *aware]), *((recipe, exports) for recipe in recipes if not recipe.sized), *sized]


def _missing(grid: Grid, recipe: Recipe | None, exports: Sequence[ExportRequest]) -> list[ExportRequest]:
    """The exports whose rows are not there."""
    return [one for one in exports if read_row(_file(grid, recipe, one), _key(grid, recipe, one)) is None]


@contextmanager
def _dense_logits(grid: Grid, work: Path) -> Iterator[ReferenceLogits]:
    """What every row is compared with."""
    with grid.opened(grid.source.path, TORCH, context=_context(grid)) as backend:
        logits = grid.dense_logits(backend, work)
    write_row(_file(grid, None, None), _key(grid, None, None), asdict(perplexity(logits.losses)))
    with logits:
        yield logits


@dataclass(frozen=True)
class _Compressed:
    """What the rows of one recipe are exported from.

    Attributes:
        recipe: that asked for it; None for the dense model.
        path: of the checkpoint.
        kept: retention reached.
        seconds: of CPU time.
    """

    recipe: Recipe | None
    path: Path
    kept: float = 1.0
    seconds: float = 0.0


def _fill(
    grid: Grid,
    recipe: Recipe | None,
    exports: Sequence[ExportRequest],
    dense: ReferenceLogits,
    work: Path,
    advance: Advance,
) -> None:
    """The missing rows of one recipe; of the dense model without one."""
    made = _Compressed(None, grid.source.path) if recipe is None else _compressed(grid, recipe, exports[0], work)
    try:
        for request in exports:
            row = _row(grid, made, request, dense, work)
            write_row(_file(grid, recipe, request), _key(grid, recipe, request), to_document(row))
            grid.progress.note(f"{row.label}: {row.bytes / 1e6:.1f} MB, KLD {row.kld:.4g}")
            advance(1)
    finally:
        if recipe is not None:
            remove(made.path)


def _compressed(grid: Grid, recipe: Recipe, request: ExportRequest, work: Path) -> _Compressed:
    """A checkpoint made in a process of its own; for a size, ranks and types are chosen here before, for a format."""
    chosen, seconds = recipe, 0.0
    if recipe.sized:
        start = time.process_time()
        settled = planned(recipe, grid.source, grid.statistics, request, device=grid.device, progress=grid.progress)
        chosen = settled.found.recipe
        seconds = time.process_time() - start
    checkpoint = work / "checkpoint"
    kept, cost = grid.compress(chosen, checkpoint, work)
    return _Compressed(recipe, checkpoint, kept, seconds + cost.cpu_seconds)


def _row(grid: Grid, made: _Compressed, request: ExportRequest, dense: ReferenceLogits, work: Path) -> SweepRow:
    """Export, measure in the runtime, remove the export."""
    path, recipe = work / request.name, made.recipe
    asked = request if recipe is not None else request.of_dense(grid.recipes[0].calibration)
    artifact = export(made.path, path, asked, force=True)
    runtime = backend_names(path)[0]
    with grid.opened(path, runtime, context=_context(grid)) as backend:
        measured = measure(backend, grid.windows, [dense], SilentProgress(), label=path.name)
    row = SweepRow(
        method=_method(recipe, request),
        retention=1.0 if recipe is None else made.kept if recipe.sized else recipe.retention,
        kept=made.kept,
        format=request.format,
        quantization=request.quantization,
        backend=runtime,
        bytes=artifact.bytes,
        bits_per_weight=artifact.bits_per_weight,
        perplexity=measured.perplexity,
        quality=measured.parities[0],
        speed=_speed(grid, path, runtime),
        compress_seconds=made.seconds,
        size=None if recipe is None else recipe.max_bytes,
    )
    remove(path)
    return row


def _method(recipe: Recipe | None, request: ExportRequest) -> str:
    if recipe is None:
        return AWARE if request.reads_calibration else PLAIN
    return SIZED if recipe.sized else recipe.method


def _timed(longest: int) -> tuple[int, int]:
    """Tokens of the prompt, and with those that follow, that speed is measured with."""
    decode = min(DEFAULTS.decode_tokens, max(1, longest // 4))
    prompt = min(DEFAULTS.prompt_tokens[0], longest - decode)
    return prompt, prompt + decode


def _context(grid: Grid) -> int:
    """Tokens that runtimes are opened for."""
    return min(grid.longest, max(grid.windows.length, _timed(grid.longest)[1]) + 1)


def _speed(grid: Grid, path: Path, runtime: str) -> Speed | None:
    if not grid.evaluation.speed:
        return None
    context = _context(grid)
    prompt, length = _timed(context - 1)
    tokens = np.resize(grid.windows.tokens, length)
    with grid.opened(path, runtime, context=context, exact=False) as backend:
        ((speed,),) = measure_speed(
            [backend],
            tokens,
            prompts=[prompt],
            decode_tokens=length - prompt,
            threads=grid.evaluation.threads,
            repeats=DEFAULTS.repeats,
        )
    return speed


def _collected(grid: Grid, columns: Columns) -> Sweep:
    """Everything asked for, from the rows' files."""
    rows = [
        restored(SweepRow.from_json, row, _file(grid, recipe, one))
        for recipe, exports in columns
        for one in exports
        if (row := read_row(_file(grid, recipe, one), _key(grid, recipe, one))) is not None
    ]
    dense = read_row(_file(grid, None, None), _key(grid, None, None)) or {}
    return Sweep(
        rows=tuple(rows),
        dense=restored(lambda data: Perplexity(**data), dense, _file(grid, None, None)),
        recipe=in_common([recipe for recipe in grid.recipes if not recipe.sized]),
        evaluation={**_evaluated(grid), "device": grid.device},
        **grid.facts(),
    )


def _file(grid: Grid, recipe: Recipe | None, request: ExportRequest | None) -> Path:
    """Where a row is kept."""
    name = PLAIN if recipe is None else f"{recipe.method}-{recipe.retention}"
    if recipe is not None and recipe.sized:
        name = f"{SIZED}-{recipe.max_bytes or recipe.bits_per_weight}"
    if request is not None:
        name += f"-{request.format}-{request.quantization}{'-aware' if request.reads_calibration else ''}"
    return grid.file(name)


def _key(grid: Grid, recipe: Recipe | None, request: ExportRequest | None) -> dict[str, Any]:
    """What a row is made from."""
    made = {} if recipe is None else grid.compressed_from(recipe)
    export = "" if request is None else f"{request.format} {request.quantization}"
    if request is not None and request.reads_calibration:
        export += " aware"
        made |= {"text_sha256": grid.texts}
    return {**grid.origin, "evaluation": _evaluated(grid), **made, "export": export}


def _evaluated(grid: Grid) -> dict[str, Any]:
    evaluation = grid.evaluation
    timed = {"speed": evaluation.speed, "threads": evaluation.threads}
    return {**evaluation.facts(), **grid.windows.facts(), **timed}
