"""The command line: parse, one call per verb, print, exit code. No logic lives here.

Exit codes: 0 ok, 1 bug, 2 usage, 3 bad input or unsupported model, 4 a gate failed, 5 out of memory or disk (or a tool
the machine lacks, or another process of the job is lost), 130 interrupted (the same command goes on).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .converter.core.errors import LowRankError, ResourceError, ToldError, UsageError
from .converter.core.recipe_options import (
    Given,
    RecipeFile,
    chosen_recipe,
    chosen_recipes,
    listed,
    numbers,
    recipe_options,
)
from .converter.storage.printable import printable
from .exporters.options import Calibration, ExportValues, chosen_exports, export_options
from .runtime_tests.evaluation_options import (
    Continuations,
    Evaluate,
    EvaluationLength,
    EvaluationWindows,
    Gate,
    Gates,
    LlamaWindows,
    MoreThreads,
    PromptTokens,
    SampleSeed,
    Speed,
    Stride,
    TaskLimit,
    TaskNames,
    Threads,
)

if TYPE_CHECKING:
    from .converter.core.progress import Progress
    from .converter.distributed.workers import Workers

EXIT_CODES = (
    "Exit codes: 0 ok, 1 bug, 2 usage, 3 bad input or unsupported model, 4 a gate failed, "
    "5 out of memory or disk, a missing tool or a lost process, 130 interrupted (the same command goes on)."
)
app = typer.Typer(
    add_completion=False,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    help="Compress a language model with AdaSVD, export it to GGUF and ONNX, and prove that it still works.",
    epilog=EXIT_CODES,
)
runtime_app = typer.Typer(help="The patched llama.cpp that runs factored GGUF files.", no_args_is_help=True)
app.add_typer(runtime_app, name="runtime")


Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
RoundingDevice = Annotated[str, typer.Option(help="That aware rounding runs its text on: auto, cpu or cuda.")]
ProcessThreads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of a process. Default: its share of the cores.")
]
DIVIDED = ("compress", "statistics")
"""Commands whose work torchrun divides among processes."""
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Statistics = Annotated[
    Path | None, typer.Option(help="Keep statistics of the dense model here, for other methods, retentions and sizes.")
]
MaxMemory = Annotated[
    str | None,
    typer.Option(help="Largest memory of this process: 8GB, 512MiB; what is beyond it goes to the disk or is refused."),
]
MaxDeviceMemory = Annotated[
    str | None,
    typer.Option(
        help="Largest memory on the GPU: 8GB, 512MiB. Default: what is free there. What is beyond it goes to this "
        "machine's memory or the disk, or is refused."
    ),
]
CompressionMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        help="Largest memory of a compression: 8GB, 512MiB. Refused if the dense model, which is measured, is larger.",
    ),
]


@app.callback(invoke_without_command=True)
@recipe_options()
@export_options("encoding")
def run(
    context: typer.Context,
    given: Given,
    exports: ExportValues,
    recipe: RecipeFile = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoint, artifacts and report.")] = Path(
        "out"
    ),
    max_memory: CompressionMemory = None,
    max_device_memory: MaxDeviceMemory = None,
    device: Device = "auto",
    evaluate: Evaluate = "python-docs",
    evaluation_windows: EvaluationWindows = 8,
    evaluation_length: EvaluationLength = 512,
    threads: Threads = None,
    speed: Speed = True,
    gates: Gates = None,
    gate: Gate = None,
    statistics: Statistics = None,
    force: Force = False,
    as_json: Json = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Compress, export and validate in one go. Sub-commands do the single steps."""
    if context.invoked_subcommand not in DIVIDED:
        with _one_line_errors():
            from .converter.distributed.joining import refuse_company

            refuse_company(context.invoked_subcommand or "the whole job")
    if context.invoked_subcommand is not None:
        return
    if version:
        from .converter.core.version import __version__

        typer.echo(__version__)
        return
    with _one_line_errors():
        chosen = chosen_recipe(recipe, given)
        requests = chosen_exports(exports, device=device, sized=chosen.sized or bool(chosen.choice))
        from .converter.core.progress import ConsoleProgress
        from .converter.storage.byte_size import MemoryLimits, device_limit, memory_limit
        from .runtime_tests.release import Evaluation, release
        from .runtime_tests.report.report_table import render

        evaluation = Evaluation(
            evaluate, evaluation_windows, evaluation_length, threads or _cores(), speed, gates=_thresholds(gates, gate)
        )
        report = release(
            chosen,
            requests,
            out,
            evaluation=evaluation,
            statistics=statistics,
            device=device,
            limits=MemoryLimits(memory_limit(max_memory), device_limit(max_device_memory)),
            force=force,
            progress=ConsoleProgress(),
        )
        _show(render(report), report.to_json(), as_json)
        _tell(f"{out}: checkpoint, artifacts, report.html, report.json, report.md and junit.xml")
        _exit_code(report, as_json)


@app.command()
@recipe_options()
def compress(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the factored checkpoint.")],
    given: Given,
    recipe: RecipeFile = None,
    statistics: Statistics = None,
    max_memory: MaxMemory = None,
    max_device_memory: MaxDeviceMemory = None,
    device: Device = "auto",
    threads: ProcessThreads = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a factored checkpoint; torchrun divides the work among processes, see docs/large-models.md."""
    _wait_passively()
    with _one_line_errors():
        from .converter.distributed.joining import joined
        from .converter.pipeline import compress as run_compress
        from .converter.storage.byte_size import device_limit, memory_limit
        from .runtime_tests.environment import process_cost

        with joined(device, threads) as workers:
            chosen = chosen_recipe(recipe, given)
            done = run_compress(
                chosen,
                out,
                device=device,
                force=force,
                statistics=statistics,
                max_memory=memory_limit(max_memory),
                max_device_memory=device_limit(max_device_memory),
                progress=_progress_of(workers),
                workers=workers,
            )
        if not workers.writes:
            return
        summary = {
            key: done.plan[key] for key in ("retention", "compression", "original_parameters", "kept_parameters")
        }
        figures = {"seconds": done.seconds, **summary, "memory": done.memory, "process": process_cost()}
        _show(None, {"path": str(done.path), **figures}, as_json)
        _tell(
            f"{done.path}: retention {done.plan['retention']:.4f} of the linears (compression "
            f"{done.plan['compression']:.1%}), {done.seconds:.0f} s"
        )


@app.command()
@recipe_options()
def statistics(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to keep them in; what is there already stays.")],
    given: Given,
    recipe: RecipeFile = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="dense, gradients, fisher, sensitivity, block-error; default: what the method reads. Repeatable."
        ),
    ] = None,
    max_memory: MaxMemory = None,
    max_device_memory: MaxDeviceMemory = None,
    device: Device = "auto",
    threads: ProcessThreads = None,
    as_json: Json = False,
) -> None:
    """Gather what a method wants to know of the dense model, for `compress --statistics`."""
    _wait_passively()
    with _one_line_errors():
        from .converter.distributed.joining import joined
        from .converter.planning.preparation import gather_statistics
        from .converter.storage.byte_size import device_limit, memory_limit
        from .runtime_tests.environment import process_cost

        with joined(device, threads) as workers:
            chosen = chosen_recipe(recipe, given)
            kinds = gather_statistics(
                chosen,
                out,
                kind or None,
                device=device,
                max_memory=memory_limit(max_memory),
                max_device_memory=device_limit(max_device_memory),
                progress=_progress_of(workers),
                workers=workers,
            )
        if not workers.writes:
            return
        _show(None, {"path": str(out), "kinds": list(kinds), "process": process_cost()}, as_json)
        _tell(f"{out}: statistics of kind {' and '.join(kinds)}" if kinds else f"{chosen.method} reads no statistics")


@app.command()
@recipe_options()
@export_options("type")
def plan(
    given: Given,
    exports: ExportValues,
    recipe: RecipeFile = None,
    statistics: Statistics = None,
    max_memory: MaxMemory = None,
    max_device_memory: MaxDeviceMemory = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Show ranks, retention, predicted bytes of every export and memory of every stage, before any work.

    Ranks are multiples of what the types named want, as in the main command. With a size instead of a retention: what
    it is spent on.
    """
    _wait_passively()
    with _one_line_errors():
        chosen = chosen_recipe(recipe, given)
        from .converter.core.progress import ConsoleProgress
        from .converter.model.source import open_source
        from .converter.planning.preparation import prepared
        from .converter.storage.byte_size import device_limit, memory_limit
        from .exporters.forecast import bytes_json, forecast_exports, storage_json, with_rank_multiple
        from .exporters.plan_table import plan_table
        from .runtime_tests.environment import process_cost

        progress = ConsoleProgress()
        limit, gpu_limit = memory_limit(max_memory), device_limit(max_device_memory)
        requests = chosen_exports(exports, sized=chosen.sized)
        source = open_source(chosen.model, progress)
        if chosen.sized and not chosen.choice:
            from .exporters.budget.size_table import size_json, size_table
            from .exporters.budget.sized import planned

            found = planned(chosen, source, statistics, device=device, limits=(limit, gpu_limit), progress=progress)
            _show(size_table(found, source.family), size_json(found, source.family), as_json)
            return
        chosen = with_rank_multiple(chosen, source, requests)
        with prepared(
            chosen, device=device, max_memory=limit, max_device_memory=gpu_limit, source=source, progress=progress
        ) as job:
            forecasts = forecast_exports(job.blocks.reader, job.plan)
            sizes = {"predicted_bytes": bytes_json(forecasts), "storage": storage_json(forecasts)}
            memory = job.memory.to_json()
            document = {**job.plan.to_json(), **sizes, "memory": memory}
            document["process"] = process_cost()
            _show(plan_table(job.plan, forecasts), document, as_json)
            for line in job.memory.lines():
                _tell(line)


@app.command()
@recipe_options("method", "retention", "max_bytes", "bits_per_weight")
def compare(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the rows, compare.json and compare.html.")],
    given: Given,
    recipe: RecipeFile = None,
    methods: Annotated[
        list[str] | None, typer.Option("--methods", help="Comma-separated or repeatable. Default: all.")
    ] = None,
    retention: Annotated[
        list[str] | None, typer.Option(help="Comma-separated or repeatable. Default: 0.8 and 0.6.", metavar="FLOAT")
    ] = None,
    max_memory: CompressionMemory = None,
    max_device_memory: MaxDeviceMemory = None,
    device: Device = "auto",
    evaluate: Evaluate = "python-docs",
    evaluation_windows: EvaluationWindows = 8,
    evaluation_length: EvaluationLength = 512,
    threads: Threads = None,
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", help="Leave every factored checkpoint in OUT/checkpoints.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Compress by several methods and measure each: perplexity, divergence, cost; a table and a page with curves."""
    _wait_passively()
    with _one_line_errors():
        from .converter.methods import METHODS

        chosen = chosen_recipes(recipe, given, listed(methods) or list(METHODS), numbers(retention) or [0.8, 0.6])
        from .converter.core.progress import ConsoleProgress
        from .converter.storage.byte_size import device_limit, memory_limit
        from .runtime_tests.release import Evaluation
        from .runtime_tests.studies.compare import compare as run_compare
        from .runtime_tests.studies.compare_table import render

        evaluation = Evaluation(evaluate, evaluation_windows, evaluation_length, threads or _cores())
        comparison = run_compare(
            chosen,
            out,
            evaluation=evaluation,
            device=device,
            keep_checkpoints=keep_checkpoints,
            max_memory=memory_limit(max_memory),
            max_device_memory=device_limit(max_device_memory),
            force=force,
            progress=ConsoleProgress(),
        )
        _show(render(comparison), comparison.to_json(), as_json)
        _tell(f"{out}: compare.json and compare.html")


MaxBytes = Annotated[str | None, typer.Option(help="Largest export: 100MB, 1.5GiB.")]
MaxKld = Annotated[float | None, typer.Option(min=0, help="Largest mean KL divergence from the dense model.")]
MinSpeed = Annotated[float | None, typer.Option(min=0, help="Fewest decoded tokens per second.")]


@app.command()
@recipe_options("method", "retention", "max_bytes", "bits_per_weight")
@export_options("type")
def sweep(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the rows, sweep.json and sweep.html.")],
    given: Given,
    exports: ExportValues,
    recipe: RecipeFile = None,
    methods: Annotated[
        list[str] | None, typer.Option("--methods", help="Comma-separated or repeatable. Default: loss-aware.")
    ] = None,
    retention: Annotated[
        list[str] | None,
        typer.Option(help="Comma-separated or repeatable. Default: 0.9, 0.8 and 0.6.", metavar="FLOAT"),
    ] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option(help="Bytes of GGUF files whose ranks and types are chosen together: 92MB,80MB.", metavar="SIZE"),
    ] = None,
    max_memory: CompressionMemory = None,
    max_device_memory: MaxDeviceMemory = None,
    device: Device = "auto",
    evaluate: Evaluate = "python-docs",
    evaluation_windows: EvaluationWindows = 8,
    evaluation_length: EvaluationLength = 512,
    threads: Threads = None,
    speed: Speed = True,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Methods, retentions and types on one model, beside plain quantisation: which size gives which quality."""
    with _one_line_errors():
        chosen = chosen_recipes(recipe, given, listed(methods) or ["loss-aware"], numbers(retention) or [0.9, 0.8, 0.6])
        by_size = [chosen_recipe(recipe, {**given, "max_bytes": size}) for size in listed(sizes)]
        requests = chosen_exports(exports)
        from .converter.core.progress import ConsoleProgress
        from .converter.storage.byte_size import device_limit, memory_limit
        from .runtime_tests.release import Evaluation
        from .runtime_tests.studies.sweep import sweep as run_sweep
        from .runtime_tests.studies.sweep_page import render

        evaluation = Evaluation(evaluate, evaluation_windows, evaluation_length, threads or _cores(), speed)
        found = run_sweep(
            chosen,
            requests,
            out,
            evaluation=evaluation,
            sizes=by_size,
            device=device,
            max_memory=memory_limit(max_memory),
            max_device_memory=device_limit(max_device_memory),
            force=force,
            progress=ConsoleProgress(),
        )
        _show(render(found), found.to_json(), as_json)
        _tell(f"{out}: sweep.json and sweep.html; now `lowrank-export recommend {out} --max-bytes ...`")


@app.command()
def recommend(
    path: Annotated[Path, typer.Argument(help="Folder of a sweep.")],
    max_bytes: MaxBytes = None,
    max_kld: MaxKld = None,
    min_speed: MinSpeed = None,
    as_json: Json = False,
) -> None:
    """Pick from a sweep: the smallest export within --max-kld, else the best within size and speed; and why."""
    with _one_line_errors():
        from .converter.storage.byte_size import parse_bytes
        from .runtime_tests.studies.sweep_results import Limits, read_rows
        from .runtime_tests.studies.sweep_results import recommend as pick

        size = None if max_bytes is None else parse_bytes(max_bytes)
        if max_bytes is not None and size is None:
            raise UsageError(f"--max-bytes {max_bytes}: expected a size such as 100MB")
        choice = pick(read_rows(path / "sweep.json"), Limits(size, max_kld, min_speed))
        _show(None, choice.to_json(), as_json)
        for line in (choice.row.label, *choice.reasons):
            _tell(line)


@app.command()
@export_options("artifact")
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a factored (or dense) checkpoint.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder the artifacts are written into.")],
    exports: ExportValues,
    calibration: Calibration = None,
    max_memory: Annotated[
        str | None, typer.Option(help="GGUF: largest memory of this process, 8GB or 512MiB; more is refused.")
    ] = None,
    device: RoundingDevice = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Export a checkpoint to GGUF and ONNX."""
    _wait_passively()
    with _one_line_errors():
        from .converter.core.progress import ConsoleProgress
        from .converter.storage.byte_size import memory_limit
        from .converter.storage.files import check_output
        from .exporters.export import export as run_export
        from .exporters.preflight import plan_export_memory
        from .runtime_tests.environment import process_cost

        progress = ConsoleProgress()
        requests = chosen_exports(exports, calibration=calibration, device=device)
        for request in requests:
            check_output(out / request.name, force)
        memory = plan_export_memory(checkpoint, requests, memory_limit(max_memory))
        artifacts = [
            run_export(checkpoint, out / request.name, request, force=force, progress=progress) for request in requests
        ]
        document: dict[str, Any] = {"artifacts": [made.to_json() for made in artifacts], "process": process_cost()}
        _show(None, document if memory is None else {**document, "memory": memory.to_json()}, as_json)
        for artifact in artifacts:
            _tell(f"{artifact.path}: {artifact.bytes:,} bytes, {artifact.bits_per_weight:.2f} bits per weight")
        if memory is not None:
            _tell(memory.line())


@app.command()
def imatrix(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a factored (or dense) checkpoint.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write, llama.cpp's imatrix format.")],
    calibration: Calibration = None,
    device: Device = "auto",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure the importance of every input, for `export --gguf-imatrix` and llama-quantize."""
    _wait_passively()
    with _one_line_errors():
        from .converter.core.progress import ConsoleProgress
        from .exporters.gguf.importance import export_imatrix

        found = export_imatrix(
            checkpoint, out, text=calibration, device=device, force=force, progress=ConsoleProgress()
        )
        _show(None, {"path": str(out), "tokens": found.tokens, "matrices": sorted(found.squares)}, as_json)
        _tell(f"{out}: importance of {len(found.squares)} matrices, measured on {found.tokens:,} tokens")


@app.command()
def validate(
    artifacts: Annotated[list[Path], typer.Argument(help=".gguf files, ONNX or checkpoint folders, folders of them.")],
    reference: Annotated[
        str, typer.Option(help="The checkpoint they were exported from, or any model as for --model.")
    ],
    dense: Annotated[str | None, typer.Option(help="The uncompressed model, as for --model.")] = None,
    dense_artifact: Annotated[
        list[Path] | None, typer.Option(help="An export of the dense model, measured and timed beside; repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for report.html, report.json, report.md and junit.xml.")
    ] = None,
    gates: Gates = None,
    gate: Gate = None,
    evaluate: Evaluate = "python-docs",
    evaluation_windows: EvaluationWindows = 8,
    evaluation_length: EvaluationLength = 512,
    evaluation_stride: Stride = None,
    llama_windows: LlamaWindows = False,
    threads: Threads = None,
    speed: Speed = True,
    prompt_tokens: PromptTokens = None,
    more_threads: MoreThreads = None,
    continuations: Continuations = 16,
    seed: SampleSeed = 0,
    task: TaskNames = None,
    task_limit: TaskLimit = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """The release gate: measure artifacts in their runtimes; exit code 4 if a gate fails."""
    with _one_line_errors():
        thresholds = _thresholds(gates, gate)
        from .converter.core.progress import ConsoleProgress
        from .converter.model.source import open_checkpoint, open_source
        from .runtime_tests.artifacts import find_artifacts
        from .runtime_tests.metrics.tasks import parse_task
        from .runtime_tests.release import Evaluation, load_windows
        from .runtime_tests.report.outputs import check_outputs, write_outputs
        from .runtime_tests.report.report_table import render
        from .runtime_tests.validate import DEFAULTS
        from .runtime_tests.validate import validate as run_validate

        if out is not None:
            check_outputs(out, force)
        evaluation = Evaluation(
            evaluate,
            evaluation_windows,
            evaluation_length,
            threads or _cores(),
            speed,
            stride=evaluation_stride,
            like_llama_cpp=llama_windows,
            prompt_tokens=tuple(prompt_tokens or DEFAULTS.prompt_tokens),
            more_threads=tuple(more_threads or ()),
            continuations=continuations,
            seed=seed,
            tasks=tuple(parse_task(word) for word in task or []),
            task_limit=task_limit,
            gates=thresholds,
        )
        progress = ConsoleProgress()
        found = [one for path in artifacts for one in find_artifacts(path)]
        exported = open_checkpoint(reference, progress)
        result = run_validate(
            found,
            reference=exported,
            dense=None if dense is None else open_source(dense, progress, "--dense").path,
            dense_artifacts=dense_artifact or [],
            windows=load_windows(evaluation, exported, progress),
            threads=evaluation.threads,
            settings=evaluation.settings(device),
            gates=thresholds,
            provenance={"evaluation": evaluation.facts()},
            progress=progress,
        )
        if out is not None:
            write_outputs(result, out)
        _show(render(result), result.to_json(), as_json)
        _exit_code(result, as_json)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint folder, .gguf file or ONNX folder.")],
    as_json: Json = False,
) -> None:
    """Show what an artifact holds: layout, sizes, every tensor's type."""
    with _one_line_errors():
        from .runtime_tests.artifacts import describe
        from .runtime_tests.report.artifact_table import artifact_table

        artifact = describe(path)
        _show(artifact_table(artifact), artifact.to_json(), as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this installation: versions, devices, runtimes, compiler, doubled packages."""
    with _one_line_errors():
        from .runtime_tests.doctor import diagnose

        findings = diagnose()
        _show(None, findings.to_json(), as_json)
        for line in findings.lines():
            _tell(line)
        if findings.problems:
            raise typer.Exit(5)


@runtime_app.command("build")
def runtime_build(
    tools: Annotated[
        bool,
        typer.Option("--tools", help="llama.cpp's programs too, from llama-cli to llama-quantize."),
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Build nothing: prove the build that is there, tiny models against numpy.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Build anew, even if there is a build.")] = False,
    as_json: Json = False,
) -> None:
    """Build the patched llama.cpp into the per-user cache (once), and prove that it computes what it should."""
    with _one_line_errors():
        from .converter.core.progress import ConsoleProgress
        from .exporters.llamacpp.runtime import check_runtime, ensure_runtime, runtime_folder
        from .exporters.llamacpp.tools import ensure_tools

        if check:
            if tools or force:
                raise UsageError("--check builds nothing: give it without --tools and --force")
            folder, proof = runtime_folder(), check_runtime(ConsoleProgress())
            _show(None, {"built": True, "path": str(folder), "proof": proof.to_json()}, as_json)
            _tell(f"llama.cpp runtime: {folder}")
            for line in proof.lines():
                _tell(line)
            if not proof.passed:
                raise ResourceError(
                    "llama.cpp runtime: it does not compute what it should; `lowrank-export runtime build --force` "
                    "builds it anew"
                )
            return
        built = ensure_runtime(ConsoleProgress(), force=force)
        programs = ensure_tools(ConsoleProgress(), force=force) if tools else None
        _show(None, {"built": True, "path": str(built), "tools": str(programs) if programs else None}, as_json)
        _tell(f"llama.cpp runtime: {built}")
        if programs:
            _tell(f"llama.cpp tools: {programs}")


@runtime_app.command("status")
def runtime_status(as_json: Json = False) -> None:
    """Say whether the patched llama.cpp is built, and where."""
    with _one_line_errors():
        from .exporters.llamacpp.runtime import find_runtime
        from .exporters.llamacpp.tools import find_tools

        found, tools = find_runtime(), find_tools()
        paths = {"path": str(found) if found else None, "tools": str(tools) if tools else None}
        _show(None, {"built": found is not None, **paths}, as_json)
        _tell(f"llama.cpp runtime: {found or 'not built; `lowrank-export runtime build`'}")
        _tell(f"llama.cpp tools: {tools or 'not built; `lowrank-export runtime build --tools`'}")


@runtime_app.command("path")
def runtime_path(
    tool: Annotated[str | None, typer.Option(help="A program: llama-cli, llama-server, llama-bench, ...")] = None,
    patch: Annotated[bool, typer.Option("--patch", help="The patch for a llama.cpp of your own.")] = False,
) -> None:
    """Print one path on stdout, for scripts: the runtime's folder, a program or the patch."""
    with _one_line_errors():
        from .exporters.llamacpp.runtime import runtime_folder
        from .exporters.llamacpp.source import PATCH
        from .exporters.llamacpp.tools import tool_path

        if tool and patch:
            raise UsageError("--tool and --patch: one path at a time")
        typer.echo(str(PATCH if patch else tool_path(tool) if tool else runtime_folder()))


LOG_WIDTH = 120  # columns of tables written to a file or pipe


def _cores() -> int:
    import psutil

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def _progress_of(workers: Workers) -> Progress:
    """One process of a job speaks for all."""
    from .converter.core.progress import ConsoleProgress, SilentProgress

    return ConsoleProgress() if workers.writes else SilentProgress()


def _show(table: Any, document: dict[str, Any], as_json: bool) -> None:
    """The table on stderr, or with --json exactly one document on stdout."""
    if as_json:
        text = json.dumps(document, indent=2, ensure_ascii=False)
        typer.echo(text.encode("utf-8", "backslashreplace").decode("utf-8"))  # half a surrogate pair is not printable
    elif table is not None:
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
        if not console.is_terminal:
            console = Console(stderr=True, highlight=False, width=LOG_WIDTH)
        console.print(table)


def _tell(line: str) -> None:
    typer.echo(printable(line), err=True)


def _thresholds(path: Path | None, flags: list[str] | None) -> Any:
    """Thresholds of a gates file and of flags."""
    from .runtime_tests.gates.gate_file import chosen_gates

    return chosen_gates(path, flags or [])


def _exit_code(report: Any, as_json: bool) -> None:
    if as_json:  # else the table has said it
        for row, gate in report.failures:
            _tell(f"gate failed: {row.label}: {gate.words}")
    if not report.passed:
        raise typer.Exit(4)


def _wait_passively() -> None:
    """Let idle OpenMP threads sleep instead of spin: fewer CPU seconds, and no standstill beside other work.

    Only for commands that run PyTorch alone, and before it is imported: llama.cpp is faster with spinning threads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn every error into one line on stderr and the documented exit code."""
    try:
        yield
    except typer.Exit:
        raise
    except ToldError as error:
        raise typer.Exit(error.exit_code) from None
    except LowRankError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; nothing half-written was left, and the same command goes on", 130)
    except MemoryError:
        _fail("out of memory; use fewer or shorter --windows, or a smaller model", 5)
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}", 5)
    except Exception as error:
        if any(said in str(error).lower() for said in ("out of memory", "can't allocate memory", "alloc_failed")):
            _fail("out of memory; use fewer or shorter --windows, --device cpu, or a smaller model", 5)
        if os.environ.get("LOWRANK_DEBUG"):
            raise
        _fail(f"bug: {type(error).__name__}: {error} (set LOWRANK_DEBUG=1 for the traceback, and report it)", 1)


def _fail(message: str, code: int) -> None:
    _tell(f"error: {message}")
    raise typer.Exit(code)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Console entry point. SIGTERM is treated as Ctrl-C, so that nothing half-written is left."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app(prog_name="lowrank-export")
    except KeyboardInterrupt:
        _tell("error: interrupted")
        sys.exit(130)
