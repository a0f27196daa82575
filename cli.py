"""The command line: parse, one call per verb, print, exit code. No logic lives here.

Exit codes: 0 ok, 1 bug, 2 usage, 3 bad input or unsupported model, 4 a gate failed, 5 out of memory or disk (or a tool
the machine lacks, or another process of the job), 130 interrupted (the same command goes on).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .converter.errors import LowRankError, ToldError, UsageError

if TYPE_CHECKING:
    from .converter.progress import Progress
    from .converter.recipe import Recipe
    from .converter.workers import Workers

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


def _recipe_option(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, show_default=False, rich_help_panel="Recipe")


METHOD_HELP = (
    "adasvd (default), loss-aware (recommended), or published: svd, fwsvd, asvd, asvd-stable-rank, svd-llm, svd-llm-u, "
    "svd-llm-v2, pifa-m, saes; see docs/methods.md."
)
# Recipe key -> its option. The one place where they are stated: `recipe_options` adds them to a command.
RECIPE_OPTIONS: dict[str, Any] = {
    "model": Annotated[str | None, _recipe_option("Hugging Face folder, hub id, .gguf file, `demo`.", "--model", "-m")],
    "method": Annotated[str | None, _recipe_option(METHOD_HELP)],
    "retention": Annotated[
        float | None, _recipe_option("Kept / original parameters of the linears, in (0, 1]. Default 0.8.")
    ],
    "layout": Annotated[str | None, _recipe_option("two-factor (default), or pivot: more rank in the same bytes.")],
    "min_retention": Annotated[float | None, _recipe_option("Floor of adaCR's retention per block.")],
    "rank_multiple": Annotated[
        int | None, _recipe_option("Ranks are multiples of this. Default 32; 256 for K-quants of wide models.")
    ],
    "keep_dense": Annotated[list[str] | None, _recipe_option("Leave matching linears dense (glob; repeatable).")],
    "similarity": Annotated[str | None, _recipe_option("adaCR's similarity: angular (default) or cosine.")],
    "iterations": Annotated[int | None, _recipe_option("adaComp iterations. Default 1.")],
    "alpha": Annotated[float | None, _recipe_option("Weight of the dense output in the target, 0 to 1.")],
    "truncation": Annotated[
        str | None, _recipe_option("two-sided sees loss gradients, one-sided does not. Default: the method's.")
    ],
    "allocation": Annotated[str | None, _recipe_option("Of ranks: uniform, adacr, threshold. Default: the method's.")],
    "gradient_windows": Annotated[int | None, _recipe_option("Windows that gradients are taken over. Default 12.")],
    "sensitivity_windows": Annotated[int | None, _recipe_option("Windows that asvd measures on. Default 2.")],
    "refine": Annotated[str | None, _recipe_option("Gradient descent on the factors: none (default), block, model.")],
    "refine_epochs": Annotated[int | None, _recipe_option("Passes of the refinement over the windows.")],
    "refine_rate": Annotated[float | None, _recipe_option("First step of the refinement, relative to each tensor.")],
    "refine_model_rate": Annotated[float | None, _recipe_option("The same for the refinement of the whole model.")],
    "refine_alpha": Annotated[float | None, _recipe_option("Weight of the dense output in the refinement's target.")],
    "calibration": Annotated[
        str | None,
        _recipe_option("Text or .jsonl file, token windows (.npy), python-docs (default), self, datasets:NAME."),
    ],
    "update_calibration": Annotated[
        str | None,
        _recipe_option("Text or windows the compressed model is fitted on, where not those of --calibration."),
    ],
    "windows": Annotated[int | None, _recipe_option("Calibration windows. Default 32.")],
    "window_length": Annotated[int | None, _recipe_option("Tokens per window. Default 1024.")],
    "held_out": Annotated[int | None, _recipe_option("Further windows that no factor is fitted on. Default 2.")],
    "calibration_reduction": Annotated[str | None, _recipe_option("moments (default) or stack-of-batch.")],
    "buckets": Annotated[int | None, _recipe_option("Buckets of stack-of-batch. Default 16.")],
    "seed": Annotated[int | None, _recipe_option("Of everything random. Default 0.")],
    "dtype": Annotated[str | None, _recipe_option("float32 (default), float16 or bfloat16.")],
    "activations": Annotated[
        str | None, _recipe_option("Forward passes in float32 or bfloat16; auto: bfloat16 where it is faster.")
    ],
}
Given = dict[str, Any]
"""The recipe keys that were given on the command line."""
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help="Recipe file; options override it. Default: ./recipe.yaml without --model.",
        rich_help_panel="Recipe",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
ProcessThreads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of a process. Default: its share of the cores.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
GgufType = Annotated[
    list[str] | None,
    typer.Option(
        help="q8_0 (default), f32, f16, bf16, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, iq4_nl, iq4_xs, q3_k, q2_k, "
        "iq3_s, iq3_xxs, iq2_s, iq2_xs, iq2_xxs, or a mix: q5_k_m, q4_k_m, q4_k_s, q3_k_m; repeatable. "
        "See docs/gguf.md."
    ),
]
GgufEmbeddingType = Annotated[str | None, typer.Option(help="Of the token embedding. Default: as the type says.")]
GgufHeadType = Annotated[
    str | None, typer.Option(help="Of the output head or tied embedding. Default: q6_k below 6 bits.")
]
GgufRounding = Annotated[
    str,
    typer.Option(
        help="plain: every block of weights by itself; aware: on the calibration text, so that outputs stay close "
        "(minutes; worth it below 8 bits)."
    ),
]
GgufImatrix = Annotated[Path | None, typer.Option(help="Importance matrix for plain rounding, see `imatrix`.")]
Calibration = Annotated[
    str | None, typer.Option(help="Text to run, as for `compress`. Default: the one the checkpoint records.")
]
OnnxType = Annotated[list[str] | None, typer.Option(help="int8 (default), fp32; repeatable.")]
Evaluate = Annotated[str, typer.Option(help="Text that is measured on, as for --calibration.")]
EvaluationWindows = Annotated[int, typer.Option(min=1, help="Windows measured.")]
EvaluationLength = Annotated[int, typer.Option(min=2, help="Tokens per measured window.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads of the runtimes. Default: all cores.")]
Speed = Annotated[bool, typer.Option("--speed/--no-speed", help="Time prefill and decode.")]
Gates = Annotated[
    Path | None, typer.Option(help="Thresholds, see docs/validation.md. Default: ./gates.yaml if it is there.")
]
Gate = Annotated[
    list[str] | None,
    typer.Option(help="One threshold, over --gates: quality.mean_kld=0.5, or =off; repeatable.", metavar="NAME=VALUE"),
]
Stride = Annotated[
    int | None, typer.Option(min=1, help="Overlapping windows, a new one every so many tokens; each token counts once.")
]
LlamaWindows = Annotated[
    bool, typer.Option("--llama-windows", help="llama.cpp's windows: chunks, of which the second half is scored.")
]
PromptTokens = Annotated[
    list[int] | None, typer.Option(min=1, help="Prompt lengths that are timed; repeatable. Default: 256.")
]
MoreThreads = Annotated[list[int] | None, typer.Option(min=1, help="Thread counts timed besides; repeatable.")]
SampleSeed = Annotated[int, typer.Option(min=0, help="Of sampled text and tasks.")]
TaskNames = Annotated[
    list[str] | None,
    typer.Option(
        help="Zero-shot task of lm-evaluation-harness: piqa, arc_easy, winogrande, hellaswag, mmlu; repeatable. "
        "NAME=FILE.jsonl takes its examples from a file.",
        metavar="NAME",
    ),
]
TaskLimit = Annotated[int | None, typer.Option(min=1, help="Examples per task. Default: all.")]


DIVIDED = ("compress", "statistics")
"""Commands whose work torchrun divides among processes."""


def recipe_options(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command every option of RECIPE_OPTIONS but `without`; those given reach its parameter `given`."""

    def add_to(command: Callable[..., None]) -> Callable[..., None]:
        offered = {key: option for key, option in RECIPE_OPTIONS.items() if key not in without}

        @wraps(command)
        def parsed(**options: Any) -> None:
            values = {key: options.pop(key) for key in offered}
            command(**options, given={key: value for key, value in values.items() if value not in (None, [])})

        parameters = []
        for own in signature(command, eval_str=True).parameters.values():
            if own.name == "given":
                added = offered.items()
                parameters += [Parameter(k, Parameter.KEYWORD_ONLY, default=None, annotation=o) for k, o in added]
            else:
                parameters.append(own.replace(kind=Parameter.KEYWORD_ONLY))
        parsed.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        parsed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return parsed

    return add_to


@app.callback(invoke_without_command=True)
@recipe_options()
def run(
    context: typer.Context,
    given: Given,
    recipe: RecipeFile = None,
    format: Annotated[
        list[str] | None, typer.Option("--format", "-f", help="gguf or onnx; repeatable.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for checkpoint, artifacts and report.")] = Path(
        "out"
    ),
    gguf_type: GgufType = None,
    gguf_embedding_type: GgufEmbeddingType = None,
    gguf_head_type: GgufHeadType = None,
    gguf_rounding: GgufRounding = "plain",
    onnx_type: OnnxType = None,
    device: Device = "auto",
    evaluate: Evaluate = "python-docs",
    evaluation_windows: EvaluationWindows = 8,
    evaluation_length: EvaluationLength = 512,
    threads: Threads = None,
    speed: Speed = True,
    gates: Gates = None,
    gate: Gate = None,
    force: Force = False,
    as_json: Json = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Compress, export and validate in one go. Sub-commands do the single steps."""
    if context.invoked_subcommand not in DIVIDED:
        with _one_line_errors():
            from .converter.joining import refuse_company

            refuse_company(context.invoked_subcommand or "the whole job")
    if context.invoked_subcommand is not None:
        return
    if version:
        from . import __version__

        typer.echo(__version__)
        return
    with _one_line_errors():
        chosen = _recipe(recipe, given)
        exports = _exports(format, gguf_type, onnx_type)
        from .converter.progress import ConsoleProgress
        from .runtime_tests.release import Evaluation, release
        from .runtime_tests.report_table import render

        evaluation = Evaluation(
            evaluate, evaluation_windows, evaluation_length, threads or _cores(), speed, gates=_thresholds(gates, gate)
        )
        report = release(
            chosen,
            exports,
            out,
            evaluation=evaluation,
            embedding_type=gguf_embedding_type,
            head_type=gguf_head_type,
            rounding=gguf_rounding,
            device=device,
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
    statistics: Annotated[
        Path | None,
        typer.Option(help="Keep statistics of the dense model here, for other methods and retentions."),
    ] = None,
    device: Device = "auto",
    threads: ProcessThreads = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a factored checkpoint."""
    _wait_passively()
    with _one_line_errors():
        from .converter.joining import joined
        from .converter.pipeline import compress as run_compress
        from .runtime_tests.environment import process_cost

        with joined(device, threads) as workers:
            chosen = _recipe(recipe, given)
            progress = _progress_of(workers)
            done = run_compress(
                chosen, out, device=device, force=force, statistics=statistics, progress=progress, workers=workers
            )
        if not workers.writes:
            return
        summary = {
            key: done.plan[key] for key in ("retention", "compression", "original_parameters", "kept_parameters")
        }
        _show(None, {"path": str(done.path), "seconds": done.seconds, **summary, "process": process_cost()}, as_json)
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
        typer.Option(help="dense, gradients, fisher, sensitivity; default: what the method reads. Repeatable."),
    ] = None,
    device: Device = "auto",
    threads: ProcessThreads = None,
    as_json: Json = False,
) -> None:
    """Gather what a method wants to know of the dense model, for `compress --statistics`."""
    _wait_passively()
    with _one_line_errors():
        from .converter.joining import joined
        from .converter.planning import gather_statistics
        from .runtime_tests.environment import process_cost

        with joined(device, threads) as workers:
            chosen = _recipe(recipe, given)
            progress = _progress_of(workers)
            kinds = gather_statistics(chosen, out, kind or None, device=device, progress=progress, workers=workers)
        if not workers.writes:
            return
        _show(None, {"path": str(out), "kinds": list(kinds), "process": process_cost()}, as_json)
        _tell(f"{out}: statistics of kind {' and '.join(kinds)}" if kinds else f"{chosen.method} reads no statistics")


@app.command()
@recipe_options()
def plan(
    given: Given,
    recipe: RecipeFile = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Show ranks, retention and predicted bytes of every export, before any work."""
    _wait_passively()
    with _one_line_errors():
        chosen = _recipe(recipe, given)
        from .converter.planning import prepared
        from .converter.progress import ConsoleProgress
        from .exporters.forecast import predict_exports, predict_storage
        from .exporters.plan_table import plan_table

        with prepared(chosen, device=device, progress=ConsoleProgress()) as job:
            forecast = predict_exports(job.blocks.reader, job.plan)
            storage = predict_storage(job.blocks.reader, job.plan)
            document = {**job.plan.to_json(), "predicted_bytes": forecast, "storage": storage}
            _show(plan_table(job.plan, forecast, storage), document, as_json)


@app.command()
@recipe_options("method", "retention")
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

        chosen = _grid(recipe, given, _listed(methods) or list(METHODS), _numbers(retention) or [0.8, 0.6])
        from .converter.progress import ConsoleProgress
        from .runtime_tests.compare import compare as run_compare
        from .runtime_tests.compare_table import render
        from .runtime_tests.release import Evaluation

        evaluation = Evaluation(evaluate, evaluation_windows, evaluation_length, threads or _cores())
        comparison = run_compare(
            chosen,
            out,
            evaluation=evaluation,
            device=device,
            keep_checkpoints=keep_checkpoints,
            force=force,
            progress=ConsoleProgress(),
        )
        _show(render(comparison), comparison.to_json(), as_json)
        _tell(f"{out}: compare.json and compare.html")


MaxBytes = Annotated[str | None, typer.Option(help="Largest export: 100MB, 1.5GiB.")]
MaxKld = Annotated[float | None, typer.Option(min=0, help="Largest mean KL divergence from the dense model.")]
MinSpeed = Annotated[float | None, typer.Option(min=0, help="Fewest decoded tokens per second.")]


@app.command()
@recipe_options("method", "retention")
def sweep(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the rows, sweep.json and sweep.html.")],
    given: Given,
    recipe: RecipeFile = None,
    methods: Annotated[
        list[str] | None, typer.Option("--methods", help="Comma-separated or repeatable. Default: loss-aware.")
    ] = None,
    retention: Annotated[
        list[str] | None,
        typer.Option(help="Comma-separated or repeatable. Default: 0.9, 0.8 and 0.6.", metavar="FLOAT"),
    ] = None,
    format: Annotated[list[str] | None, typer.Option("--format", "-f", help="gguf or onnx; repeatable.")] = None,
    gguf_type: GgufType = None,
    onnx_type: OnnxType = None,
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
        chosen = _grid(recipe, given, _listed(methods) or ["loss-aware"], _numbers(retention) or [0.9, 0.8, 0.6])
        exports = _exports(format, gguf_type, onnx_type)
        from .converter.progress import ConsoleProgress
        from .runtime_tests.release import Evaluation
        from .runtime_tests.sweep import sweep as run_sweep
        from .runtime_tests.sweep_page import render

        evaluation = Evaluation(evaluate, evaluation_windows, evaluation_length, threads or _cores(), speed)
        found = run_sweep(
            chosen, exports, out, evaluation=evaluation, device=device, force=force, progress=ConsoleProgress()
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
        from .runtime_tests.gate_file import parse_bytes
        from .runtime_tests.sweep_results import Limits, read_rows
        from .runtime_tests.sweep_results import recommend as pick

        size = None if max_bytes is None else parse_bytes(max_bytes)
        if max_bytes is not None and size is None:
            raise UsageError(f"--max-bytes {max_bytes}: expected a size such as 100MB")
        choice = pick(read_rows(path / "sweep.json"), Limits(size, max_kld, min_speed))
        _show(None, choice.to_json(), as_json)
        for line in (choice.row.label, *choice.reasons):
            _tell(line)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a factored (or dense) checkpoint.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder the artifacts are written into.")],
    format: Annotated[list[str] | None, typer.Option("--format", "-f", help="gguf or onnx; repeatable.")] = None,
    gguf_type: GgufType = None,
    gguf_embedding_type: GgufEmbeddingType = None,
    gguf_head_type: GgufHeadType = None,
    onnx_type: OnnxType = None,
    layout: Annotated[
        str,
        typer.Option(
            help="GGUF: native (factors), dense (multiplied out), adapter (low-bit residuals and a LoRA adapter that "
            "holds the factors); the last two need no patch."
        ),
    ] = "native",
    dense: Annotated[
        str | None, typer.Option(help="Layout adapter: the dense model, whose residuals the base holds.")
    ] = None,
    gguf_residual_type: Annotated[
        str | None, typer.Option(help="Layout adapter: type of the residuals, or zero. Default: q4_0 with --dense.")
    ] = None,
    gguf_rounding: GgufRounding = "plain",
    gguf_imatrix: GgufImatrix = None,
    calibration: Calibration = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Export a checkpoint to GGUF and ONNX."""
    _wait_passively()
    with _one_line_errors():
        from .converter.files import check_output
        from .converter.progress import ConsoleProgress
        from .exporters.export import artifact_name
        from .exporters.gguf.rounding_choice import Rounding
        from .runtime_tests.exporting import export as run_export

        progress = ConsoleProgress()
        rounding = Rounding(gguf_rounding, gguf_imatrix, calibration)
        wanted = _exports(format, gguf_type, onnx_type)
        for kind, type in wanted:
            check_output(out / artifact_name(kind, type), force)
        artifacts = [
            run_export(
                checkpoint,
                out / artifact_name(kind, type),
                format=kind,
                quantisation=type,
                embedding_type=gguf_embedding_type,
                head_type=gguf_head_type,
                layout=layout if kind == "gguf" else "native",
                dense=dense if kind == "gguf" else None,
                residual=gguf_residual_type if kind == "gguf" else None,
                rounding=rounding if kind == "gguf" else None,
                force=force,
                progress=progress,
            )
            for kind, type in wanted
        ]
        _show(None, {"artifacts": [artifact.to_json() for artifact in artifacts]}, as_json)
        for artifact in artifacts:
            _tell(f"{artifact.path}: {artifact.bytes:,} bytes, {artifact.bits_per_weight:.2f} bits per weight")


@app.command()
def imatrix(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a factored (or dense) checkpoint.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write, llama.cpp's imatrix format.")],
    calibration: Calibration = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure the importance of every input, for `export --gguf-imatrix` and llama-quantize."""
    _wait_passively()
    with _one_line_errors():
        from .converter.progress import ConsoleProgress
        from .exporters.gguf.importance import export_imatrix

        found = export_imatrix(checkpoint, out, text=calibration, force=force, progress=ConsoleProgress())
        _show(None, {"path": str(out), "tokens": found.tokens, "matrices": sorted(found.squares)}, as_json)
        _tell(f"{out}: importance of {len(found.squares)} matrices, measured on {found.tokens:,} tokens")


@app.command()
def validate(
    artifacts: Annotated[list[Path], typer.Argument(help=".gguf files, ONNX or checkpoint folders, folders of them.")],
    reference: Annotated[Path, typer.Option(help="The checkpoint they were exported from.")],
    dense: Annotated[Path | None, typer.Option(help="The uncompressed Hugging Face folder.")] = None,
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
        from .converter.progress import ConsoleProgress
        from .runtime_tests.artifacts import find_artifacts
        from .runtime_tests.outputs.files import check_outputs, write_outputs
        from .runtime_tests.release import Evaluation, load_windows
        from .runtime_tests.report_table import render
        from .runtime_tests.tasks import parse_task
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
            seed=seed,
            tasks=tuple(parse_task(word) for word in task or []),
            task_limit=task_limit,
            gates=thresholds,
        )
        result = run_validate(
            [found for path in artifacts for found in find_artifacts(path)],
            reference=reference,
            dense=dense,
            dense_artifacts=dense_artifact or [],
            windows=load_windows(evaluation, reference),
            threads=evaluation.threads,
            settings=evaluation.settings(device),
            gates=thresholds,
            provenance={"evaluation": evaluation.facts()},
            progress=ConsoleProgress(),
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
        from .runtime_tests.artifact_table import artifact_table
        from .runtime_tests.artifacts import describe

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
    as_json: Json = False,
) -> None:
    """Build the patched llama.cpp into the per-user cache (once)."""
    with _one_line_errors():
        from .converter.progress import ConsoleProgress
        from .runtime_tests.llamacpp.runtime import ensure_runtime
        from .runtime_tests.llamacpp.tools import ensure_tools

        built = ensure_runtime(ConsoleProgress())
        programs = ensure_tools(ConsoleProgress()) if tools else None
        _show(None, {"built": True, "path": str(built), "tools": str(programs) if programs else None}, as_json)
        _tell(f"llama.cpp runtime: {built}")
        if programs:
            _tell(f"llama.cpp tools: {programs}")


@runtime_app.command("status")
def runtime_status(as_json: Json = False) -> None:
    """Say whether the patched llama.cpp is built, and where."""
    with _one_line_errors():
        from .runtime_tests.llamacpp.runtime import find_runtime
        from .runtime_tests.llamacpp.tools import find_tools

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
        from .runtime_tests.llamacpp.runtime import runtime_folder
        from .runtime_tests.llamacpp.source import PATCH
        from .runtime_tests.llamacpp.tools import tool_path

        if tool and patch:
            raise UsageError("--tool and --patch: one path at a time")
        typer.echo(str(PATCH if patch else tool_path(tool) if tool else runtime_folder()))


LOG_WIDTH = 120  # columns of tables written to a file or pipe


def _recipe(path: Path | None, given: Given) -> Recipe:
    """Recipe file, overridden by options."""
    from .converter.recipe import make_recipe

    return make_recipe(*_recipe_values(path, given))


def _recipe_values(path: Path | None, given: Given) -> tuple[dict[str, Any], str]:
    """The keys of the recipe file, overridden by options, and what errors call them."""
    from .converter.recipe import RECIPE_FILE, read_recipe_values

    default = Path(RECIPE_FILE)
    if path is None and "model" not in given and default.is_file():
        path = default
    if path is None and "model" not in given:
        raise UsageError(f"nothing to do: give --model (try `--model demo`), or put a {RECIPE_FILE} in this folder")
    values = read_recipe_values(path) if path is not None else {}
    return {**values, **given}, str(path) if path is not None and not given else "command line"


def _progress_of(workers: Workers) -> Progress:
    """One process of a job speaks for all."""
    from .converter.progress import ConsoleProgress, SilentProgress

    return ConsoleProgress() if workers.writes else SilentProgress()


def _listed(given: list[str] | None) -> list[str]:
    """Words of a repeatable option, each a comma-separated list."""
    return [word.strip() for part in given or [] for word in part.split(",") if word.strip()]


def _numbers(given: list[str] | None) -> list[float | str]:
    """Numbers of such an option; a word that is none stays as it is: the recipe's own check names it."""

    def number(word: str) -> float | str:
        try:
            return float(word)
        except ValueError:
            return word

    return [number(word) for word in _listed(given)]


def _grid(
    path: Path | None, given: Given, methods: Sequence[str], retentions: Sequence[float | str]
) -> tuple[Recipe, ...]:
    """A recipe per method and retention."""
    from .converter.recipe import recipe_grid

    values, where = _recipe_values(path, given)
    return recipe_grid(values, methods, retentions, where)


def _exports(formats: list[str] | None, gguf: list[str] | None, onnx: list[str] | None) -> list[tuple[str, str]]:
    """(format, type) pairs asked for; GGUF in its default type where nothing was asked for."""
    from .exporters.export import check_format

    types: dict[str, list[str] | None] = {"gguf": gguf, "onnx": onnx}
    defaults: list[str | None] = [None]
    chosen = [(kind, type) for kind in formats or ["gguf"] for type in types.get(kind) or defaults]
    return [(kind, check_format(kind, type)) for kind, type in dict.fromkeys(chosen)]


def _cores() -> int:
    import psutil

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def _show(table: Any, document: dict[str, Any], as_json: bool) -> None:
    """The table on stderr, or with --json exactly one document on stdout."""
    if as_json:
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    elif table is not None:
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
        if not console.is_terminal:
            console = Console(stderr=True, highlight=False, width=LOG_WIDTH)
        console.print(table)


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def _thresholds(path: Path | None, flags: list[str] | None) -> Any:
    """Thresholds of a gates file and of flags."""
    from .runtime_tests.gate_file import chosen_gates

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
        if "out of memory" in str(error).lower() or "can't allocate memory" in str(error).lower():
            _fail("out of memory; use fewer or shorter --windows, --device cpu, or a smaller model", 5)
        if os.environ.get("LOWRANK_DEBUG"):
            raise
        _fail(f"bug: {type(error).__name__}: {error} (set LOWRANK_DEBUG=1 for the traceback, and report it)", 1)


def _fail(message: str, code: int) -> None:
    _tell(f"error: {' '.join(message.split())}")
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
