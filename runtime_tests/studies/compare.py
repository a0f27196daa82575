"""Several methods and retentions on one model: each compressed in a process of its own, measured on the same windows.

DIR/rows/        a result per method and retention; those that are there are not made again
DIR/statistics/  of the dense model, shared by the methods; removed at the end
DIR/checkpoints/ one at a time, or all with keep_checkpoints
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...converter.core.errors import UsageError
from ...converter.core.progress import Advance, Progress, SilentProgress
from ...converter.core.recipe import Recipe, in_common
from ...converter.journal import forget
from ...converter.machine.device import pick_device
from ...converter.model.loading import load_tokenizer
from ...converter.model.source import Source, open_source
from ...converter.planning.ranks import statistics_kinds
from ...converter.statistics.store import Statistics
from ...converter.storage.byte_size import NO_LIMITS, MemoryLimits
from ...converter.storage.files import remove
from ..artifacts import describe
from ..backends.formats import TORCH
from ..backends.open import open_backend, released
from ..backends.protocol import Backend
from ..child import Cost, run_child
from ..environment import library_versions, machine_facts
from ..evaluation import Evaluation, load_windows
from ..generation.generation import Sample, sample
from ..metrics.measure import check_measurable, measure
from ..metrics.perplexity import perplexity
from ..metrics.reference_logits import ReferenceLogits
from ..metrics.windows import Windows
from ..report.report import write_json, write_text
from ..validate import PROMPT, check_windows
from .compare_html import page
from .compare_results import Comparison, Gathering, Measurement, Row
from .places import check_own_folder, work_folder
from .rows import T, read_row, restored, text_hashes, write_row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS, STATISTICS, CHECKPOINTS, WORK = "rows", "statistics", "checkpoints", ".work"
DOCUMENT, PAGE = "compare.json", "compare.html"
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
class _Job:
    """What every step needs."""

    recipes: Sequence[Recipe]
    out: Path
    source: Source
    windows: Windows
    tokenizer: PreTrainedTokenizerBase
    origin: Mapping[str, Any]
    texts: Mapping[str, str | None]
    evaluation: Mapping[str, Any]
    device: str
    threads: int
    keep_checkpoints: bool
    limits: MemoryLimits
    progress: Progress

    def key(self, recipe: Recipe) -> dict[str, Any]:
        """What a row is made from."""
        made = {"recipe": recipe.model_dump(mode="json"), "text_sha256": self.texts}
        return {**self.origin, **made, "evaluation": self.evaluation}

    def statistics_key(self, kind: str) -> dict[str, Any]:
        """What statistics are made from."""
        shared = self.recipes[0].model_dump(mode="json", include=set(SHAPES_STATISTICS))
        return {**self.origin, "recipe": shared, "text_sha256": self.texts, "statistics": kind}

    def file(self, name: str) -> Path:
        """Where a row is kept."""
        return self.out / ROWS / f"{name}.json"


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
        progress: told about rows.

    Raises:
        UsageError: `out` holds something else, or rows made from something else, and `force` is not set.
        InputError, ResourceError: from the stages; finished rows are kept.
    """
    progress = progress or SilentProgress()
    check_own_folder(out, ROWS)
    job = _prepare(recipes, out, evaluation, device, keep_checkpoints, limits, progress)
    if force:
        for name in (ROWS, STATISTICS, CHECKPOINTS, WORK, DOCUMENT, PAGE):
            remove(out / name)
    missing = [recipe for recipe in recipes if read_row(job.file(_name(recipe)), job.key(recipe)) is None]
    if missing or read_row(job.file("dense"), _dense_key(job)) is None:
        _fill(job, missing)
    remove(out / STATISTICS)
    comparison = _collected(job)
    write_json(comparison.to_json(), out / DOCUMENT)
    write_text(page(comparison), out / PAGE)
    return comparison


def _prepare(
    recipes: Sequence[Recipe],
    out: Path,
    evaluation: Evaluation,
    device: str,
    keep: bool,
    limits: MemoryLimits,
    progress: Progress,
) -> _Job:
    """Find model, tokenizer and evaluation windows, and check them before any work."""
    chosen = str(pick_device(device))
    source = open_source(recipes[0].model, progress)
    check_measurable(source.reader(), limits, chosen)
    windows = load_windows(evaluation, source.path, progress)
    check_windows(windows, source.reader().config)
    return _Job(
        recipes=recipes,
        out=out,
        source=source,
        windows=windows,
        tokenizer=load_tokenizer(source.path),
        origin={"source_sha256": source.fingerprint(), "device": chosen},
        texts=text_hashes(recipes[0]),
        evaluation={"evaluation_text": evaluation.text, "evaluation_windows": windows.facts(), "prompt": PROMPT},
        device=chosen,
        threads=evaluation.threads,
        keep_checkpoints=keep,
        limits=limits,
        progress=progress,
    )


def _fill(job: _Job, missing: Sequence[Recipe]) -> None:
    """Make the missing rows, dense first, then the statistics that they read."""
    gatherings = _gatherings(job, missing)
    with (
        work_folder(job.out, WORK, ROWS) as work,
        job.progress.stage("comparing methods", 1 + len(gatherings) + len(missing)) as advance,
        ExitStack() as stack,
    ):
        dense = stack.enter_context(_dense_logits(job, work))
        advance(1)
        for kind, recipe in gatherings.items():
            _gather(job, kind, recipe, work)
            advance(1)
        _make_rows(job, missing, dense, work, advance)


def _dense_logits(job: _Job, work: Path) -> ReferenceLogits:
    """Record what every row is compared with, and keep the dense model's own figures."""
    with _opened(job, job.source.path) as backend:
        logits = ReferenceLogits.record(backend, job.windows, work / "dense.f32", SilentProgress(), label="dense")
        try:
            text = _sample(job, backend)
        except BaseException:
            logits.close()
            raise
    artifact = describe(job.source.path)
    found = Measurement(artifact.bytes, artifact.parameters, perplexity(logits.losses), None, text)
    write_row(job.file("dense"), _dense_key(job), asdict(found))
    job.progress.note(f"dense: PPL {found.perplexity.value:.2f}")
    return logits


def _gatherings(job: _Job, missing: Sequence[Recipe]) -> dict[str, Recipe]:
    """Kind of statistics that is wanted and not there -> a recipe that reads it."""
    wanted: dict[str, Recipe] = {}
    for recipe in missing:
        for kind in statistics_kinds(recipe):
            wanted.setdefault(kind, recipe)
    there = (job.out / STATISTICS).is_dir()
    return {
        kind: recipe
        for kind, recipe in wanted.items()
        if read_row(_statistics_file(job, kind), job.statistics_key(kind)) is None or not there
    }


def _gather(job: _Job, kind: str, recipe: Recipe, work: Path) -> None:
    """Gather one kind in a process of its own; from the start, or its cost would be that of the rest."""
    folder = job.out / STATISTICS
    Statistics(folder).forget(kind)
    arguments = ["statistics", "--out", str(folder), "--kind", kind]
    _, cost = run_child([*arguments, *_recipe_arguments(job, recipe, work)], work / "log")
    write_row(_statistics_file(job, kind), job.statistics_key(kind), asdict(cost))
    job.progress.note(f"statistics of kind {kind}: {_cost_words(cost)}")


def _make_rows(job: _Job, missing: Sequence[Recipe], dense: ReferenceLogits, work: Path, advance: Advance) -> None:
    for recipe in missing:
        row = _row(job, recipe, dense, work)
        write_row(job.file(_name(recipe)), job.key(recipe), asdict(row))
        found = row.measured.perplexity
        job.progress.note(
            f"{row.method} at retention {row.kept:.3f}: PPL {found.value:.2f} ± {found.standard_error:.2f}, "
            f"{_cost_words(row.cost)}"
        )
        advance(1)


def _row(job: _Job, recipe: Recipe, dense: ReferenceLogits, work: Path) -> Row:
    """Compress in a process of its own, measure here, remove the checkpoint."""
    checkpoint = job.out / CHECKPOINTS / _name(recipe)
    forget(checkpoint)  # a row is made in one go, or its cost would not be all of it
    arguments = ["compress", "--out", str(checkpoint), "--force", "--statistics", str(job.out / STATISTICS)]
    try:
        summary, cost = run_child([*arguments, *_recipe_arguments(job, recipe, work)], work / "log")
        artifact = describe(checkpoint)
        with _opened(job, checkpoint) as backend:
            found = measure(backend, job.windows, [dense], SilentProgress(), label=_name(recipe))
            text = _sample(job, backend)
    finally:
        forget(checkpoint)
        if not job.keep_checkpoints:
            remove(checkpoint)
            with suppress(OSError):  # those of other rows were kept before
                checkpoint.parent.rmdir()
    measured = Measurement(artifact.bytes, artifact.parameters, found.perplexity, found.parities[0], text)
    return Row(recipe.method, recipe.retention, float(summary["retention"]), cost, measured)


def _recipe_arguments(job: _Job, recipe: Recipe, work: Path) -> list[str]:
    path = work / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    return ["--recipe", str(path), "--device", job.device, *job.limits.options()]


def _opened(job: _Job, path: Path) -> AbstractContextManager[Backend]:
    return released(open_backend(path, TORCH, threads=job.threads, context=job.windows.length, device=job.device))


def _sample(job: _Job, backend: Backend) -> Sample:
    return sample(backend, job.tokenizer, PROMPT, max_tokens=SAMPLE_TOKENS)


def _collected(job: _Job) -> Comparison:
    """Everything asked for, from the rows' files."""
    readers: dict[str, dict[str, None]] = {}
    for recipe in job.recipes:
        for kind in statistics_kinds(recipe):
            readers.setdefault(kind, {})[recipe.method] = None
    costs = {kind: read_row(_statistics_file(job, kind), job.statistics_key(kind)) for kind in readers}
    return Comparison(
        rows=tuple(_kept(job, _name(recipe), job.key(recipe), Row.from_json) for recipe in job.recipes),
        dense=_kept(job, "dense", _dense_key(job), Measurement.from_json),
        statistics=tuple(
            Gathering(
                kind, tuple(readers[kind]), restored(lambda data: Cost(**data), cost, _statistics_file(job, kind))
            )
            for kind, cost in costs.items()
            if cost is not None
        ),
        recipe=in_common(job.recipes),
        source={"spec": job.source.spec, "sha256": job.origin["source_sha256"], "licence": job.source.licence},
        evaluation={**job.evaluation, "device": job.device, "threads": job.threads},
        versions=library_versions(),
        machine=machine_facts(),
    )


def _kept(job: _Job, name: str, key: Mapping[str, Any], make: Callable[[dict[str, Any]], T]) -> T:
    result = read_row(job.file(name), key)
    if result is None:
        raise UsageError(f"{job.file(name)}: was removed while the comparison ran; run it again")
    return restored(make, result, job.file(name))


def _name(recipe: Recipe) -> str:
    return f"{recipe.method}-{recipe.retention}"


def _statistics_file(job: _Job, kind: str) -> Path:
    return job.file(f"statistics-{kind}")


def _dense_key(job: _Job) -> dict[str, Any]:
    return {**job.origin, "evaluation": job.evaluation}


def _cost_words(cost: Cost) -> str:
    return f"{cost.cpu_seconds:.0f} CPU seconds, {cost.wall_seconds:.0f} s, {cost.peak_bytes / 1e9:.2f} GB"
