"""The main job: compress, export, validate, in one folder; an interrupted job resumes where it stopped."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..converter.checkpoint.reader import read_json
from ..converter.core.errors import UsageError
from ..converter.core.progress import Progress
from ..converter.core.recipe import RECIPE_FILE, Recipe, read_recipe
from ..converter.model.source import Source, open_source
from ..converter.pipeline import compress
from ..converter.planning.disk_forecast import bytes_at, check_disk, checkpoint_bytes, factored_shapes
from ..converter.planning.experts_check import check_experts
from ..converter.storage.byte_size import NO_LIMITS, MemoryLimits
from ..converter.storage.files import check_output, remove
from ..converter.texts.pairs import names_pairs
from ..exporters.artifact import Artifact
from ..exporters.budget.sized import CHECKPOINT
from ..exporters.chosen import CHOSEN
from ..exporters.export import export
from ..exporters.forecast import with_rank_multiple
from ..exporters.preflight import check_exports, export_bytes
from ..exporters.registry import TARGETS
from ..exporters.target import ExportRequest
from .artifacts import describe
from .evaluation import Evaluation, load_windows
from .metrics.measure import FLOAT, check_measurable
from .metrics.tasks import check_tasks
from .metrics.windows import Windows, check_windows
from .report.markdown import card_path
from .report.outputs import OUTPUTS, write_cards, write_outputs
from .report.report import Report
from .sized_release import HELD_OUT_FILE, SIZE_FILE, STATISTICS, settle
from .trimmed_release import TRIMMED, fewer_tokens, trimmed_first
from .validate import DenseModel, validate

DENSE = "dense"
REPORT = "report.json"


@dataclass(frozen=True)
class Placement:
    """Where a compression runs.

    Attributes:
        device: "auto", "cpu", "cuda".
        limits: memory that it may take; of its GPU by default what is free there.
        statistics: a folder where statistics of the dense model are kept, for other recipes and sizes.
    """

    device: str
    limits: MemoryLimits = NO_LIMITS
    statistics: Path | None = None


def release(
    recipe: Recipe,
    exports: Sequence[ExportRequest],
    out: Path,
    *,
    evaluation: Evaluation,
    placement: Placement,
    force: bool,
    progress: Progress,
) -> Report:
    """Compress, export and validate into `out`: checkpoint/, an artifact and its card per export, the report's files.

    Finished stages of an interrupted job are kept when the recipe is the same.

    Args:
        recipe: what to compress and how.
        exports: what to make of it; of the dense model too, whose rounding runs the recipe's calibration text.
        out: the folder to make.
        evaluation: text and size of the measurement.
        placement: of the compression.
        force: start over, replacing what is there; but for the model with fewer tokens, if it is the one asked for.

    Raises:
        UsageError: `out` holds a finished job or one of another recipe, and `force` is not set.
        InputError, ResourceError: from the stages.
    """
    device, limits, statistics = placement.device, placement.limits, placement.statistics
    vocabulary: dict[str, Any] = {}
    for request in exports:
        request.check()
        if request.quantization == CHOSEN:
            request.check_choice(recipe.forms)
    of_dense = [request.of_dense(recipe.calibration) for request in exports]
    if names_pairs(recipe.calibration) and (recipe.sized or any(request.reads_calibration for request in exports)):
        raise UsageError(f"--calibration {recipe.calibration}: sizes and aware rounding run texts, without pictures")
    if recipe.keep_vocabulary:
        _check_place(fewer_tokens(recipe, out), out, force)
        whole = open_source(recipe.model, progress)
        check_exports(whole.reader(), exports)
        load_windows(evaluation, whole.path)
        recipe, vocabulary = trimmed_first(recipe, whole, out, evaluation.text, force=force, progress=progress)
    _check_place(recipe, out, force)
    for format in dict.fromkeys(request.format for request in exports):
        TARGETS[format].check_tools()
    source = open_source(recipe.model, progress)
    check_experts(recipe, source.family)
    check_measurable(source.reader(), MemoryLimits(limits.process))
    check_exports(source.reader(), exports)
    windows = load_windows(evaluation, source.path, progress)
    check_windows(windows, source.reader().config)
    if evaluation.tasks:
        check_tasks(evaluation.tasks)
    _check_disk(recipe, source, exports, of_dense, windows, out)
    if force:
        _clear(out)
    checkpoint, size = out / CHECKPOINT, None
    if recipe.sized and not recipe.choice:
        statistics = statistics or out / STATISTICS  # the choice and the fit read the same
        size = settle(
            recipe, source, exports[0], out, statistics=statistics, device=device, limits=limits, progress=progress
        )
        recipe = size.recipe
        if checkpoint.exists() and read_recipe(checkpoint / RECIPE_FILE).choice not in size.choices:
            raise UsageError(f"{out}: holds an unfinished job of another format or choice; add --force to start over")
    elif not recipe.choice:
        recipe = with_rank_multiple(recipe, source, exports)
    make = partial(
        compress,
        out=checkpoint,
        device=device,
        statistics=statistics,
        limits=limits,
        progress=progress,
    )
    if not checkpoint.exists():
        make(recipe, force=force)
    elif read_json(checkpoint / "calibration.json").get("source_sha256") != source.fingerprint():
        raise UsageError(f"{out}: holds an unfinished job of another {recipe.model}; add --force to start over")
    if recipe.choice:  # what a size has to beat, in place of the dense model in the same type
        plain = None if size is None else size.plain
        of_dense = [] if plain is None else [plain.request(exports[0]).of_dense(recipe.calibration)]
    factored = [_export(checkpoint, out, request, progress) for request in exports]
    dense = [_export(source.path, out / DENSE, request, progress) for request in of_dense]
    if size is not None and factored[0].bytes > size.facts["budget"]:
        over = factored[0].bytes - size.facts["budget"]
        progress.note(f"{factored[0].path}: {over} bytes more than the size that was asked for; ask for as many less")
    if size is not None and size.plain is not None:
        beaten = size.beaten(factored[0], dense[0], source.path, evaluation.threads, progress)
        if beaten:
            recipe = size.plain.recipe
            make(recipe, force=True)
            factored = [_export(checkpoint, out, exports[0], progress, again=True)]
    report = validate(
        factored,
        reference=checkpoint,
        windows=windows,
        dense=DenseModel(source.path, dense),
        settings=evaluation.settings(),
        gates=evaluation.gates,
        scratch=out,
        progress=progress,
    ).with_provenance(
        {
            "recipe": recipe.model_dump(mode="json"),
            "calibration": read_json(checkpoint / "calibration.json"),
            "evaluation": evaluation.facts(),
            **({} if size is None else {"size": size.facts}),
            **_experts(read_json(checkpoint / "plan.json")),
            **({"vocabulary": vocabulary} if vocabulary else {}),
        }
    )
    write_cards(report, factored)
    write_outputs(report, out)
    for folder in (DENSE, STATISTICS):
        shutil.rmtree(out / folder, ignore_errors=True)
    for file in (SIZE_FILE, HELD_OUT_FILE):
        remove(out / file)
    return report


def _experts(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Experts that are fitted on tokens of others too, as plan.json names them: tokens sent to each and shown."""
    few = [f"{one['block']}.{one['expert']}: {one['sent']} of {one['shown']}" for one in plan.get("few_tokens", ())]
    return {"experts": {"few_tokens": ", ".join(few)}} if few else {}


def _check_disk(
    recipe: Recipe,
    source: Source,
    exports: Sequence[ExportRequest],
    of_dense: Sequence[ExportRequest],
    windows: Windows,
    out: Path,
) -> None:
    """Refuse a job whose checkpoint, exports and recorded logits do not fit beside what the folder holds already."""
    reader = source.reader()
    factored, dense = factored_shapes(recipe, source), {name: reader.shape(name) for name in reader.names}
    needed = checkpoint_bytes(recipe, factored) + export_bytes(exports, factored, reader.config)
    if not recipe.sized and not recipe.choice:  # a size is held against another file, of types that are chosen later
        needed += export_bytes(of_dense, dense, reader.config)
    logits = 2 * FLOAT * int(windows.counts.sum()) * int(reader.config["vocab_size"])  # of both torch models
    check_disk(out, needed + logits - bytes_at(out), "the checkpoint, its exports and what is recorded to compare them")


def _check_place(recipe: Recipe, out: Path, force: bool) -> None:
    """Refuse a folder that is neither new, nor holds finished stages of this very job, nor may be replaced."""
    check_output(out / REPORT, force)
    if not out.is_dir():
        return
    made = out / CHECKPOINT / RECIPE_FILE
    foreign = [entry for entry in out.iterdir() if not entry.name.startswith(".") and entry.name != TRIMMED]
    if foreign and not made.is_file():
        hint = "it is not a folder this tool made" if force else "or add --force"
        raise UsageError(f"{out}: exists and is not empty; choose another --out{', ' if force else ' '}{hint}")
    if foreign and not force and not _same(read_recipe(made), recipe):
        raise UsageError(f"{out}: holds an unfinished job of another recipe; choose another --out or add --force")


def _same(made: Recipe, asked: Recipe) -> bool:
    """Whether a recipe is what was asked for; an automatic rank multiple is whichever was chosen."""
    chosen = {"rank_multiple": asked.rank_multiple or made.rank_multiple, "choice": asked.choice or made.choice}
    return made == asked.model_copy(update=chosen)


def _clear(out: Path) -> None:
    """Remove what a job makes, and nothing else."""
    names = {target.request(type).name for target in TARGETS.values() for type in target.parity_limits()}
    remove(out / SIZE_FILE)
    for name in names:
        remove(card_path(out / name))
    for name in (CHECKPOINT, DENSE, *OUTPUTS, *names):
        remove(out / name)


def _export(
    checkpoint: Path, folder: Path, request: ExportRequest, progress: Progress, *, again: bool = False
) -> Artifact:
    """Export, unless a finished one of the same request is there from before and it is not to be made again."""
    target = folder / request.name
    if target.exists() and not again and request.is_at(target):
        return describe(target)
    folder.mkdir(parents=True, exist_ok=True)
    return export(checkpoint, target, request, force=True, progress=progress)
