"""Several methods and retentions on one model: each compressed in a process of its own, measured on the same windows.

DIR/rows/        a result per method and retention; those that are there are not made again
DIR/statistics/  of the dense model, shared by the methods; removed at the end
DIR/checkpoints/ one at a time, or all with keep_checkpoints
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...converter.core.errors import UsageError
from ...converter.core.progress import Progress, SilentProgress
from ...converter.core.recipe import Recipe, in_common
from ...converter.journal import forget
from ...converter.model.loading import load_tokenizer
from ...converter.planning.ranks import statistics_kinds
from ...converter.statistics.store import Statistics
from ...converter.storage.byte_size import NO_LIMITS, MemoryLimits
from ...converter.storage.files import remove
from ..artifacts import describe
from ..backends.formats import TORCH
from ..backends.protocol import Backend
from ..child import Cost
from ..evaluation import Evaluation
from ..generation.generation import Sample, sample
from ..metrics.measure import measure
from ..metrics.perplexity import perplexity
from ..metrics.reference_logits import ReferenceLogits
from ..settings import PROMPT
from .compare_html import page
from .compare_results import CompareRow, Comparison, Gathering, Measurement
from .grid import Grid, open_grid
from .rows import T, read_row, restored, write_row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME, CHECKPOINTS, DENSE = "compare", "checkpoints", "dense"
SAMPLE_TOKENS = 32
SHAPES_STATISTICS = (
    "model",
    "calibration",
    "windows",
    "window_length",
    "held_out",
    "calibration_reduction",
    "buckets",
    "seed",
    "gradient_windows",
    "sensitivity_windows",
    "dtype",
)
"""Recipe keys on which the statistics depend, the last digits included."""


@dataclass(frozen=True)
class _Comparing:
    """What making a row takes."""

    grid: Grid
    tokenizer: PreTrainedTokenizerBase
    keep_checkpoints: bool

    def opened(self, path: Path) -> AbstractContextManager[Backend]:
        """A checkpoint, dense or factored, in torch."""
        return self.grid.opened(path, TORCH, context=self.grid.windows.length, device=self.grid.device)

    def sample(self, backend: Backend) -> Sample:
        """A continuation of the prompt."""
        return sample(backend, self.tokenizer, PROMPT, max_tokens=SAMPLE_TOKENS)


def compare(
    recipes: Sequence[Recipe],
    out: Path,
    *,
    evaluation: Evaluation,
    device: str = "auto",
    keep_checkpoints: bool = False,
    limits: MemoryLimits = NO_LIMITS,
    force: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Compress by every recipe, measure every checkpoint, write compare.json and compare.html.

    Rows that are there already, of equal recipe and evaluation, are not made again.

    Args:
        recipes: from `recipe_grid`: alike but for method and retention.
        out: the folder to make.
        evaluation: text and size of the measurement.
        device: of compression and measurement.
        keep_checkpoints: leave every checkpoint in `out`/checkpoints.
        limits: memory that a process may take; of its GPU by default what is free there.
        force: start over, replacing what is there.
        progress: receives a step per row.

    Raises:
        UsageError: `out` holds something else, or rows made from something else, and `force` is not set.
        InputError, ResourceError: from the stages; finished rows are kept.
    """
    grid = open_grid(recipes, out, evaluation=evaluation, device=device, limits=limits, progress=progress)
    comparing = _Comparing(grid, load_tokenizer(grid.source.path), keep_checkpoints)
    if force:
        grid.start_over(CHECKPOINTS, f"{NAME}.json", f"{NAME}.html")
    missing = [recipe for recipe in recipes if read_row(grid.file(_name(recipe)), _key(grid, recipe)) is None]
    if missing or read_row(grid.file(DENSE), _dense_key(grid)) is None:
        _fill(comparing, missing)
    remove(grid.statistics)
    comparison = _collected(grid)
    grid.write(NAME, comparison.to_json(), page(comparison))
    return comparison


def _fill(comparing: _Comparing, missing: Sequence[Recipe]) -> None:
    """Make the missing rows, dense first, then the statistics that they read."""
    grid = comparing.grid
    gatherings = _gatherings(grid, missing)
    with (
        grid.working("comparing methods", 1 + len(gatherings) + len(missing)) as (work, advance),
        _dense_logits(comparing, work) as dense,
    ):
        advance(1)
        for kind, recipe in gatherings.items():
            _gather(grid, kind, recipe, work)
            advance(1)
        for recipe in missing:
            row = _row(comparing, recipe, dense, work)
            write_row(grid.file(_name(recipe)), _key(grid, recipe), asdict(row))
            measured = row.measured.perplexity
            grid.progress.note(
                f"{row.method} at retention {row.kept:.3f}: PPL {measured.value:.2f} ± {measured.standard_error:.2f}, "
                f"{_cost_words(row.cost)}"
            )
            advance(1)


def _dense_logits(comparing: _Comparing, work: Path) -> ReferenceLogits:
    """Record what every row is compared with, and keep the dense model's own figures."""
    grid = comparing.grid
    with comparing.opened(grid.source.path) as backend:
        logits = grid.dense_logits(backend, work)
        try:
            text = comparing.sample(backend)
        except BaseException:
            logits.close()
            raise
    artifact = describe(grid.source.path)
    dense = Measurement(artifact.bytes, artifact.parameters, perplexity(logits.losses), None, text)
    write_row(grid.file(DENSE), _dense_key(grid), asdict(dense))
    grid.progress.note(f"dense: PPL {dense.perplexity.value:.2f}")
    return logits


def _gatherings(grid: Grid, missing: Sequence[Recipe]) -> dict[str, Recipe]:
    """Kind of statistics that a recipe reads and that is not there -> such a recipe."""
    readers: dict[str, Recipe] = {}
    for recipe in missing:
        for kind in statistics_kinds(recipe):
            readers.setdefault(kind, recipe)
    there = grid.statistics.is_dir()
    return {
        kind: recipe
        for kind, recipe in readers.items()
        if read_row(_statistics_file(grid, kind), _statistics_key(grid, kind)) is None or not there
    }


def _gather(grid: Grid, kind: str, recipe: Recipe, work: Path) -> None:
    """Gather one kind in a process of its own; from the start, or its cost would be that of the rest."""
    Statistics(grid.statistics).forget(kind)
    _, cost = grid.run(["statistics", "--out", str(grid.statistics), "--kind", kind], recipe, work)
    write_row(_statistics_file(grid, kind), _statistics_key(grid, kind), asdict(cost))
    grid.progress.note(f"statistics of kind {kind}: {_cost_words(cost)}")


def _row(comparing: _Comparing, recipe: Recipe, dense: ReferenceLogits, work: Path) -> CompareRow:
    """Compress in a process of its own, measure here, remove the checkpoint."""
    grid = comparing.grid
    checkpoint = grid.out / CHECKPOINTS / _name(recipe)
    forget(checkpoint)  # a row is made in one go, or its cost would not be all of it
    try:
        kept, cost = grid.compress(recipe, checkpoint, work)
        artifact = describe(checkpoint)
        with comparing.opened(checkpoint) as backend:
            measured = measure(backend, grid.windows, [dense], SilentProgress(), label=_name(recipe))
            text = comparing.sample(backend)
    finally:
        forget(checkpoint)
        if not comparing.keep_checkpoints:
            remove(checkpoint)
            with suppress(OSError):  # those of other rows were kept before
                checkpoint.parent.rmdir()
    quality = measured.parities[0]
    figures = Measurement(artifact.bytes, artifact.parameters, measured.perplexity, quality, text)
    return CompareRow(recipe.method, recipe.retention, kept, cost, figures)


def _collected(grid: Grid) -> Comparison:
    """Everything asked for, from the rows' files."""
    readers: dict[str, dict[str, None]] = {}
    for recipe in grid.recipes:
        for kind in statistics_kinds(recipe):
            readers.setdefault(kind, {})[recipe.method] = None
    costs = {kind: read_row(_statistics_file(grid, kind), _statistics_key(grid, kind)) for kind in readers}
    return Comparison(
        rows=tuple(_kept(grid, _name(recipe), _key(grid, recipe), CompareRow.from_json) for recipe in grid.recipes),
        dense=_kept(grid, DENSE, _dense_key(grid), Measurement.from_json),
        statistics=tuple(
            Gathering(
                kind, tuple(readers[kind]), restored(lambda data: Cost(**data), cost, _statistics_file(grid, kind))
            )
            for kind, cost in costs.items()
            if cost is not None
        ),
        recipe=in_common(grid.recipes),
        evaluation={**_evaluated(grid), "device": grid.device, "threads": grid.evaluation.threads},
        **grid.facts(),
    )


def _kept(grid: Grid, name: str, key: Mapping[str, Any], make: Callable[[dict[str, Any]], T]) -> T:
    result = read_row(grid.file(name), key)
    if result is None:
        raise UsageError(f"{grid.file(name)}: was removed while the comparison ran; run it again")
    return restored(make, result, grid.file(name))


def _name(recipe: Recipe) -> str:
    return f"{recipe.method}-{recipe.retention}"


def _key(grid: Grid, recipe: Recipe) -> dict[str, Any]:
    """What a row is made from."""
    return {**grid.origin, **grid.compressed_from(recipe), "evaluation": _evaluated(grid)}


def _dense_key(grid: Grid) -> dict[str, Any]:
    return {**grid.origin, "evaluation": _evaluated(grid)}


def _evaluated(grid: Grid) -> dict[str, Any]:
    text, windows = grid.evaluation.text, grid.windows.facts()
    return {"evaluation_text": text, "evaluation_windows": windows, "prompt": PROMPT}


def _statistics_file(grid: Grid, kind: str) -> Path:
    return grid.file(f"statistics-{kind}")


def _statistics_key(grid: Grid, kind: str) -> dict[str, Any]:
    """What statistics are made from."""
    shared = grid.recipes[0].model_dump(mode="json", include=set(SHAPES_STATISTICS))
    return {**grid.origin, "recipe": shared, "text_sha256": grid.texts, "statistics": kind}


def _cost_words(cost: Cost) -> str:
    return f"{cost.cpu_seconds:.0f} CPU seconds, {cost.wall_seconds:.0f} s, {cost.peak_bytes / 1e9:.2f} GB"
