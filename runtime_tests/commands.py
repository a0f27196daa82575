"""The main job, `validate`, `compare`, `sweep`, `recommend`, `inspect` and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..converter.core.errors import InputError, UsageError
from ..converter.core.outcome import Outcome
from ..converter.core.recipe_options import (
    VOCABULARY,
    Given,
    RecipeFile,
    chosen_recipe,
    chosen_recipes,
    listed,
    numbers,
    recipe_options,
)
from ..converter.core.run_options import RUNNING, Force, Running, Statistics, chosen_limits, running_options
from ..exporters.options import ExportValues, chosen_exports, export_options
from .evaluation_options import EvaluationValues, chosen_evaluation, evaluation_options

if TYPE_CHECKING:
    from .report.report import Report

MaxBytes = Annotated[str | None, typer.Option(help="Largest export: 100MB, 1.5GiB.", metavar="SIZE")]
MaxKld = Annotated[float | None, typer.Option(min=0, help="Largest mean KL divergence from the dense model.")]
MinSpeed = Annotated[float | None, typer.Option(min=0, help="Fewest decoded tokens per second.")]


@recipe_options()
@export_options("encoding")
@running_options("measured")
@evaluation_options("job")
def run(
    given: Given,
    exports: ExportValues,
    running: Running,
    evaluation: EvaluationValues,
    recipe: RecipeFile = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoint, artifacts and report.")] = Path(
        "out"
    ),
    statistics: Statistics = None,
    force: Force = False,
) -> Outcome:
    """Compress, export and validate in one go. Sub-commands do the single steps."""
    chosen = chosen_recipe(recipe, given)
    device = running["device"]
    requests = chosen_exports(exports, device=device, sized=chosen.sized or bool(chosen.choice))
    from ..converter.core.progress import ConsoleProgress
    from .release import Placement, release

    report = release(
        chosen,
        requests,
        out,
        evaluation=chosen_evaluation(evaluation),
        placement=Placement(device, chosen_limits(running), statistics),
        force=force,
        progress=ConsoleProgress(),
    )
    return _reported(report, f"{out}: checkpoint, artifacts, report.html, report.json, report.md and junit.xml")


@evaluation_options("gate")
def validate(
    artifacts: Annotated[list[Path], typer.Argument(help=".gguf files, ONNX or checkpoint folders, folders of them.")],
    reference: Annotated[
        str, typer.Option(help="The checkpoint they were exported from, or any model as for --model.")
    ],
    evaluation: EvaluationValues,
    dense: Annotated[str | None, typer.Option(help="The uncompressed model, as for --model.")] = None,
    dense_artifact: Annotated[
        list[Path] | None, typer.Option(help="An export of the dense model, measured and timed beside; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for report.html, report.json, report.md and junit.xml.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.", rich_help_panel=RUNNING)] = "cpu",
    force: Force = False,
) -> Outcome:
    """The release gate: measure artifacts in their runtimes; exit code 4 if a gate fails."""
    asked = chosen_evaluation(evaluation)
    from ..converter.core.progress import ConsoleProgress
    from ..converter.model.source import open_checkpoint, open_source
    from .artifacts import find_artifacts
    from .evaluation import load_windows
    from .report.outputs import check_outputs, write_outputs
    from .validate import DenseModel
    from .validate import validate as run_validate

    if out is not None:
        check_outputs(out, force)
    progress = ConsoleProgress()
    found = [one for path in artifacts for one in find_artifacts(path)]
    exported = open_checkpoint(reference, progress)
    uncompressed = None
    if dense is not None:
        uncompressed = DenseModel(open_source(dense, progress, "--dense").path, dense_artifact or [])
    elif dense_artifact:
        raise InputError("dense artifacts were given without the dense model they were exported from")
    report = run_validate(
        found,
        reference=exported,
        dense=uncompressed,
        windows=load_windows(asked, exported, progress),
        settings=asked.settings(device),
        gates=asked.gates,
        progress=progress,
    ).with_provenance({"evaluation": asked.facts()})
    if out is not None:
        write_outputs(report, out)
    return _reported(report)


@recipe_options(*VOCABULARY, "method", "retention", "max_bytes", "bits_per_weight", "max_prefill_flops")
@running_options("measured")
@evaluation_options("quality")
def compare(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the rows, compare.json and compare.html.")],
    given: Given,
    running: Running,
    evaluation: EvaluationValues,
    recipe: RecipeFile = None,
    methods: Annotated[
        list[str] | None, typer.Option("--methods", help="Comma-separated or repeatable. Default: all.")
    ] = None,
    retention: Annotated[
        list[str] | None, typer.Option(help="Comma-separated or repeatable. Default: 0.8 and 0.6.", metavar="NUMBER")
    ] = None,
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", help="Leave every factored checkpoint in OUT/checkpoints.")
    ] = False,
    force: Force = False,
) -> Outcome:
    """Compress by several methods and measure each: perplexity, divergence, cost; a table and a page with curves."""
    from ..converter.methods import METHODS

    chosen = chosen_recipes(recipe, given, listed(methods) or list(METHODS), numbers(retention) or [0.8, 0.6])
    from ..converter.core.progress import ConsoleProgress
    from .studies.compare import compare as run_compare
    from .studies.compare_table import render

    comparison = run_compare(
        chosen,
        out,
        evaluation=chosen_evaluation(evaluation),
        device=running["device"],
        keep_checkpoints=keep_checkpoints,
        limits=chosen_limits(running),
        force=force,
        progress=ConsoleProgress(),
    )
    return Outcome(comparison.to_json(), render(comparison), (f"{out}: compare.json and compare.html",))


@recipe_options(*VOCABULARY, "method", "retention", "max_bytes", "bits_per_weight", "max_prefill_flops")
@export_options("type")
@running_options("measured")
@evaluation_options("speed")
def sweep(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the rows, sweep.json and sweep.html.")],
    given: Given,
    exports: ExportValues,
    running: Running,
    evaluation: EvaluationValues,
    recipe: RecipeFile = None,
    methods: Annotated[
        list[str] | None, typer.Option("--methods", help="Comma-separated or repeatable. Default: loss-aware.")
    ] = None,
    retention: Annotated[
        list[str] | None,
        typer.Option(help="Comma-separated or repeatable. Default: 0.9, 0.8 and 0.6.", metavar="NUMBER"),
    ] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option(help="Bytes of exports whose ranks and types are chosen together: 92MB,80MB.", metavar="SIZE"),
    ] = None,
    force: Force = False,
) -> Outcome:
    """Methods, retentions and types on one model, beside plain quantization: which size gives which quality."""
    chosen = chosen_recipes(recipe, given, listed(methods) or ["loss-aware"], numbers(retention) or [0.9, 0.8, 0.6])
    by_size = [chosen_recipe(recipe, {**given, "max_bytes": size}) for size in listed(sizes)]
    requests = chosen_exports(exports)
    from ..converter.core.progress import ConsoleProgress
    from .studies.sweep import sweep as run_sweep
    from .studies.sweep_page import render

    found = run_sweep(
        (*chosen, *by_size),
        requests,
        out,
        evaluation=chosen_evaluation(evaluation),
        device=running["device"],
        limits=chosen_limits(running),
        force=force,
        progress=ConsoleProgress(),
    )
    line = f"{out}: sweep.json and sweep.html; now `lowrank-export recommend {out} --max-bytes ...`"
    return Outcome(found.to_json(), render(found), (line,))


def trim(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the model with fewer tokens.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Hugging Face folder, hub id, .gguf file, `demo`.")],
    keep_vocabulary: Annotated[
        list[str], typer.Option(help="Text whose tokens are kept, as for --calibration; repeatable.", metavar="TEXT")
    ],
    vocabulary_size: Annotated[
        int | None, typer.Option(min=1, help="Tokens that are kept, most frequent first. Default: all that occur.")
    ] = None,
    evaluate: Annotated[
        list[str] | None, typer.Option(help="Text on which the cost is measured; repeatable. Default: python-docs.")
    ] = None,
    passages: Annotated[int, typer.Option(min=2, help="Of each text.", metavar="N")] = 16,
    passage_length: Annotated[int, typer.Option(min=16, help="Characters of a passage.", metavar="N")] = 2000,
    force: Force = False,
) -> Outcome:
    """A smaller vocabulary: drop the tokens that texts do not use, and measure what that costs."""
    from ..converter.core.progress import ConsoleProgress
    from ..converter.model.source import open_source
    from ..converter.storage.files import check_output
    from ..converter.vocabulary.trim import trim as run_trim
    from .trimming import trim_cost

    check_output(out, force)
    progress = ConsoleProgress()
    source = open_source(model, progress)
    made = run_trim(source, out, texts=keep_vocabulary, size=vocabulary_size, force=force, progress=progress)
    texts = evaluate or ["python-docs"]
    cost = trim_cost(source, made, texts, count=passages, characters=passage_length, progress=progress)
    return Outcome(cost.to_json(), None, tuple(cost.lines()))


def recommend(
    path: Annotated[Path, typer.Argument(help="Folder of a sweep.")],
    max_bytes: MaxBytes = None,
    max_kld: MaxKld = None,
    min_speed: MinSpeed = None,
) -> Outcome:
    """Pick from a sweep: the smallest export within --max-kld, else the best within size and speed; and why."""
    from ..converter.storage.byte_size import parse_bytes
    from .studies.sweep_results import Limits, read_rows
    from .studies.sweep_results import recommend as pick

    size = None if max_bytes is None else parse_bytes(max_bytes)
    if max_bytes is not None and size is None:
        raise UsageError(f"--max-bytes {max_bytes}: expected a size such as 100MB")
    choice = pick(read_rows(path / "sweep.json"), Limits(size, max_kld, min_speed))
    return Outcome(choice.to_json(), lines=(choice.row.label, *choice.reasons))


def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint folder, .gguf file or ONNX folder.")],
) -> Outcome:
    """Show what an artifact holds: layout, sizes, every tensor's type."""
    from .artifacts import describe
    from .report.artifact_table import artifact_table

    artifact = describe(path)
    return Outcome(artifact.to_json(), artifact_table(artifact))


def doctor() -> Outcome:
    """Check this installation: versions, devices, runtimes, compiler, doubled packages."""
    from .doctor import diagnose

    findings = diagnose()
    return Outcome(findings.to_json(), lines=tuple(findings.lines()), exit_code=5 if findings.problems else 0)


def _reported(report: Report, *lines: str) -> Outcome:
    """A report, and the exit code of its gates."""
    from .report.report_table import render

    failed = tuple(f"gate failed: {row.label}: {gate.words}" for row, gate in report.failures)
    return Outcome(report.to_json(), render(report), lines, said_by_table=failed, exit_code=0 if report.passed else 4)
