"""Methods x retentions x types on one model: each exported and measured in its runtime, beside plain quantisation.

DIR/rows/       a result per method, retention and type; those that are there are not made again
DIR/statistics/ of the dense model, shared by the methods; removed at the end
DIR/.work/      one checkpoint and one export at a time
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...converter.core.progress import Advance, Progress, SilentProgress
from ...converter.core.recipe import Recipe, in_common
from ...converter.machine.device import pick_device
from ...converter.model.source import Source, open_source
from ...converter.storage.byte_size import NO_LIMITS, MemoryLimits
from ...converter.storage.files import remove
from ...exporters.budget.sized import planned
from ...exporters.export import export
from ...exporters.gguf.mixes import CHOSEN
from ...exporters.gguf.rounding_choice import Rounding
from ...exporters.gguf.target import GgufRequest
from ...exporters.preflight import check_exports
from ...exporters.target import ExportRequest
from ..backends.formats import TORCH, backend_names
from ..backends.open import open_backend, released
from ..backends.protocol import Backend
from ..child import run_child
from ..environment import library_versions, machine_facts
from ..evaluation import Evaluation, load_windows
from ..metrics.measure import check_measurable, measure
from ..metrics.perplexity import Perplexity, perplexity
from ..metrics.reference_logits import ReferenceLogits
from ..metrics.windows import Windows
from ..report.report import write_json, write_text
from ..timing.speed import Speed, measure_speed
from ..validate import DEFAULTS, check_windows
from .places import check_own_folder, work_folder
from .rows import read_row, restored, text_hashes, write_row
from .sweep_page import sweep_page
from .sweep_results import PLAIN, SIZED, Sweep, SweepRow

ROWS, STATISTICS, WORK = "rows", "statistics", ".work"
DOCUMENT, PAGE = "sweep.json", "sweep.html"


@dataclass(frozen=True)
class _Job:
    """What every step needs."""

    out: Path
    source: Source
    windows: Windows
    evaluation: Evaluation
    context: int
    device: str
    origin: Mapping[str, Any]
    texts: Mapping[str, str | None]
    limits: MemoryLimits
    progress: Progress

    def opened(self, path: Path, name: str, *, exact: bool = True) -> AbstractContextManager[Backend]:
        """A model in a runtime."""
        return released(open_backend(path, name, threads=self.evaluation.threads, context=self.context, exact=exact))

    def key(self, recipe: Recipe | None, export: ExportRequest | None) -> dict[str, Any]:
        """What a row is made from."""
        made = {} if recipe is None else {"recipe": recipe.model_dump(mode="json"), "text_sha256": self.texts}
        return {**self.origin, **made, "export": "" if export is None else f"{export.format} {export.quantisation}"}

    def file(self, recipe: Recipe | None, export: ExportRequest | None) -> Path:
        """Where a row is kept."""
        name = PLAIN if recipe is None else f"{recipe.method}-{recipe.retention}"
        if recipe is not None and recipe.sized:
            name = f"{SIZED}-{recipe.max_bytes or recipe.bits_per_weight}"
        if export is not None:
            name += f"-{export.format}-{export.quantisation}"
        return self.out / ROWS / f"{name}.json"

    def missing(self, recipe: Recipe | None, exports: Sequence[ExportRequest]) -> list[ExportRequest]:
        """The exports whose rows are not there."""
        return [one for one in exports if read_row(self.file(recipe, one), self.key(recipe, one)) is None]


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
            linear chosen together, for a GGUF file.
        exports: what each of the others is exported as.
        out: the folder to make.
        evaluation: text and size of the measurement; every export is timed alone where it asks for speed.
        device: of the compression.
        limits: memory that a compression may take; of its GPU by default what is free there.
        force: start over, replacing what is there.
        progress: told about rows.

    Raises:
        UsageError: `out` holds something else, or rows made from something else, and `force` is not set.
        InputError, ResourceError: from the stages; finished rows are kept.
    """
    progress = progress or SilentProgress()
    check_own_folder(out, ROWS)
    job = _prepare(recipes, exports, out, evaluation, device, limits, progress)
    if force:
        for name in (ROWS, STATISTICS, WORK, DOCUMENT, PAGE):
            remove(out / name)
    asked = _asked(recipes, exports)
    todo = [(recipe, job.missing(recipe, wanted)) for recipe, wanted in asked]
    total = sum(len(wanted) for _, wanted in todo)
    if total or read_row(job.file(None, None), job.key(None, None)) is None:
        with (
            work_folder(out, WORK, ROWS) as work,
            progress.stage("sweep", 1 + total) as advance,
            _dense(job, work) as dense,
        ):
            advance(1)
            for recipe, wanted in todo:
                if wanted:
                    _make(job, recipe, wanted, dense, work, advance)
    remove(out / STATISTICS)
    found = _collected(job, recipes, asked)
    write_json(found.to_json(), out / DOCUMENT)
    write_text(sweep_page(found), out / PAGE)
    return found


Asked = Sequence[tuple[Recipe | None, Sequence[ExportRequest]]]


def _asked(recipes: Sequence[Recipe], exports: Sequence[ExportRequest]) -> Asked:
    """Recipe -> its exports: plain quantisation first, then every recipe in every type, then every size in its own."""
    by_size = GgufRequest(CHOSEN, rounding=Rounding("aware"))
    return [(None, exports), *((recipe, [by_size] if recipe.sized else exports) for recipe in recipes)]


def _prepare(
    recipes: Sequence[Recipe],
    exports: Sequence[ExportRequest],
    out: Path,
    evaluation: Evaluation,
    device: str,
    limits: MemoryLimits,
    progress: Progress,
) -> _Job:
    chosen = str(pick_device(device))
    source = open_source(recipes[0].model, progress)
    check_exports(source.reader(), exports)
    check_measurable(source.reader(), limits, chosen)
    windows = load_windows(evaluation, source.path, progress)
    longest = check_windows(windows, source.reader().config)
    facts = {**evaluation.facts(), **windows.facts(), "speed": evaluation.speed, "threads": evaluation.threads}
    return _Job(
        out=out,
        source=source,
        windows=windows,
        evaluation=evaluation,
        context=min(longest, max(windows.length, _timed(longest)[1]) + 1),
        device=chosen,
        origin={"source_sha256": source.fingerprint(), "device": chosen, "evaluation": facts},
        texts=text_hashes(recipes[0]),
        limits=limits,
        progress=progress,
    )


def _timed(longest: int) -> tuple[int, int]:
    """Tokens of the prompt, and with those that follow, that speed is measured with."""
    decode = min(DEFAULTS.decode_tokens, max(1, longest // 4))
    prompt = min(DEFAULTS.prompt_tokens[0], longest - decode)
    return prompt, prompt + decode


@contextmanager
def _dense(job: _Job, work: Path) -> Iterator[ReferenceLogits]:
    """What every row is compared with."""
    with job.opened(job.source.path, TORCH) as backend:
        logits = ReferenceLogits.record(backend, job.windows, work / "dense.f32", SilentProgress(), label="dense")
    write_row(job.file(None, None), job.key(None, None), asdict(perplexity(logits.losses)))
    with logits:
        yield logits


def _make(
    job: _Job,
    recipe: Recipe | None,
    exports: Sequence[ExportRequest],
    dense: ReferenceLogits,
    work: Path,
    advance: Advance,
) -> None:
    """The missing rows of one recipe; of the dense model without one."""
    checkpoint, kept, seconds = job.source.path, 1.0, 0.0
    if recipe is not None:
        if recipe.sized:
            cpu = time.process_time()
            found = planned(recipe, job.source, job.out / STATISTICS, device=job.device, progress=job.progress)
            chosen, seconds = found.found.recipe, time.process_time() - cpu
        else:
            chosen = recipe
        checkpoint = work / "checkpoint"
        written = work / "recipe.yaml"
        written.write_text(chosen.to_yaml(), encoding="utf-8")
        options = ["--recipe", str(written), "--statistics", str(job.out / STATISTICS), "--device", job.device]
        options += job.limits.options()
        summary, cost = run_child(["compress", "--out", str(checkpoint), "--force", *options], work / "log")
        kept, seconds = float(summary["retention"]), seconds + cost.cpu_seconds
    try:
        for request in exports:
            target = work / request.name
            made = export(checkpoint, target, request, force=True)
            name = backend_names(target)[0]
            with job.opened(target, name) as backend:
                measured = measure(backend, job.windows, [dense], SilentProgress(), label=target.name)
            row = SweepRow(
                method=PLAIN if recipe is None else SIZED if recipe.sized else recipe.method,
                retention=1.0 if recipe is None else kept if recipe.sized else recipe.retention,
                kept=kept,
                format=request.format,
                quantisation=request.quantisation,
                backend=name,
                bytes=made.bytes,
                bits_per_weight=made.bits_per_weight,
                perplexity=measured.perplexity,
                quality=measured.parities[0],
                speed=_speed(job, target, name),
                compress_seconds=seconds,
                size=None if recipe is None else recipe.max_bytes,
            )
            write_row(job.file(recipe, request), job.key(recipe, request), asdict(row))
            remove(target)
            job.progress.note(f"{row.label}: {row.bytes / 1e6:.1f} MB, KLD {row.kld:.4g}")
            advance(1)
    finally:
        if recipe is not None:
            remove(checkpoint)


def _speed(job: _Job, path: Path, name: str) -> Speed | None:
    if not job.evaluation.speed:
        return None
    prompt, length = _timed(job.context - 1)
    tokens = np.resize(job.windows.tokens, length)
    with job.opened(path, name, exact=False) as backend:
        ((speed,),) = measure_speed(
            [backend],
            tokens,
            prompts=[prompt],
            decode_tokens=length - prompt,
            threads=job.evaluation.threads,
            repeats=DEFAULTS.repeats,
        )
    return speed


def _collected(job: _Job, recipes: Sequence[Recipe], asked: Asked) -> Sweep:
    """Everything asked for, from the rows' files."""
    rows = [
        restored(SweepRow.from_json, found, job.file(recipe, one))
        for recipe, exports in asked
        for one in exports
        if (found := read_row(job.file(recipe, one), job.key(recipe, one))) is not None
    ]
    dense = read_row(job.file(None, None), job.key(None, None)) or {}
    return Sweep(
        rows=tuple(rows),
        dense=restored(lambda data: Perplexity(**data), dense, job.file(None, None)),
        recipe=in_common([recipe for recipe in recipes if not recipe.sized]),
        source={"spec": job.source.spec, "sha256": job.origin["source_sha256"], "licence": job.source.licence},
        evaluation={**job.origin["evaluation"], "device": job.device},
        versions=library_versions(),
        machine=machine_facts(),
    )
