"""`compress`, `plan`, `export`, `imatrix`, and the commands of llama.cpp's build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..converter.core.errors import ResourceError, UsageError
from ..converter.core.outcome import Outcome
from ..converter.core.recipe_options import VOCABULARY, Given, RecipeFile, chosen_recipe, recipe_options
from ..converter.core.run_options import (
    RUNNING,
    Device,
    Force,
    ProcessThreads,
    Running,
    Statistics,
    chosen_limits,
    running_options,
)
from .options import Calibration, ExportValues, chosen_exports, export_options

RoundingDevice = Annotated[
    str, typer.Option(help="That aware rounding runs its text on: auto, cpu or cuda.", rich_help_panel=RUNNING)
]
ExportMemory = Annotated[
    str | None,
    typer.Option(
        help="GGUF: largest memory of this process, 8GB or 512MiB; more is refused.",
        metavar="SIZE",
        rich_help_panel=RUNNING,
    ),
]
Checkpoint = Annotated[Path, typer.Argument(help="Folder of a factored (or dense) checkpoint.")]


@recipe_options(*VOCABULARY)
@export_options("type")
@running_options()
def compress(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the factored checkpoint.")],
    given: Given,
    exports: ExportValues,
    running: Running,
    recipe: RecipeFile = None,
    statistics: Statistics = None,
    threads: ProcessThreads = None,
    force: Force = False,
) -> Outcome | None:
    """Make a factored checkpoint; torchrun divides the work among processes, see docs/large-models.md.

    With --format or a type, those exports are asked first whether they will accept it, and ranks suit their types.
    """
    from ..converter.commands import progress_of
    from ..converter.distributed.joining import joined
    from ..converter.model.source import open_source
    from ..converter.pipeline import compress as run_compress
    from .forecast import with_rank_multiple
    from .preflight import check_accepted

    device = running["device"]
    requests = chosen_exports(exports) if any(exports.values()) else ()
    with joined(device, threads) as workers:
        chosen, progress = chosen_recipe(recipe, given), progress_of(workers)
        if requests:
            source = workers.main_process_first(lambda: open_source(chosen.model, progress))
            check_accepted(source.reader(), requests)
            chosen = with_rank_multiple(chosen, source, requests)
        done = run_compress(
            chosen,
            out,
            device=device,
            force=force,
            statistics=statistics,
            limits=chosen_limits(running),
            progress=progress,
            workers=workers,
        )
    if not workers.is_main_process:
        return None
    summary = {key: done.plan[key] for key in ("retention", "compression", "original_parameters", "kept_parameters")}
    line = (
        f"{done.path}: retention {done.plan['retention']:.4f} of the linears (compression "
        f"{done.plan['compression']:.1%}), {done.seconds:.0f} s"
    )
    document = {"path": str(done.path), "seconds": done.seconds, **summary, "memory": done.memory}
    return Outcome(document, lines=(line,), with_cost=True)


@recipe_options(*VOCABULARY)
@export_options("type")
@running_options()
def plan(
    given: Given,
    exports: ExportValues,
    running: Running,
    recipe: RecipeFile = None,
    statistics: Statistics = None,
) -> Outcome:
    """Show ranks, retention, predicted bytes of every export and memory of every stage, before any work.

    Ranks are multiples of what the types named want, as in the main command. With a size instead of a retention: what
    it is spent on.
    """
    chosen = chosen_recipe(recipe, given)
    from ..converter.core.progress import ConsoleProgress
    from ..converter.model.source import open_source
    from ..converter.planning.preparation import prepared
    from .forecast import bytes_json, forecast_exports, storage_json, with_rank_multiple
    from .plan_table import plan_table
    from .preflight import refusals

    progress, limits, device = ConsoleProgress(), chosen_limits(running), running["device"]
    requests = chosen_exports(exports, sized=chosen.sized or bool(chosen.choice))
    if chosen.choice:
        requests[0].check_choice(chosen.forms)
    source = open_source(chosen.model, progress)
    for line in refusals(source.reader(), requests):
        progress.note(line)
    if chosen.sized and not chosen.choice:
        from .budget.size_table import size_json, size_table
        from .budget.sized import planned

        found = planned(chosen, source, statistics, requests[0], device=device, limits=limits, progress=progress)
        return Outcome(size_json(found, source.family), size_table(found, source.family))
    chosen = with_rank_multiple(chosen, source, requests)
    with prepared(chosen, device=device, limits=limits, source=source, progress=progress) as job:
        forecasts = forecast_exports(job.blocks.reader, job.plan)
        sizes = {"predicted_bytes": bytes_json(forecasts), "storage": storage_json(forecasts)}
        document = {**job.plan.to_json(), **sizes, "memory": job.memory.to_json()}
        return Outcome(
            document, plan_table(job.plan, forecasts, source.family.stack), tuple(job.memory.lines()), with_cost=True
        )


@export_options("artifact")
def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder the artifacts are written into.")],
    exports: ExportValues,
    calibration: Calibration = None,
    max_memory: ExportMemory = None,
    device: RoundingDevice = "auto",
    force: Force = False,
) -> Outcome:
    """Export a checkpoint to GGUF and ONNX."""
    from ..converter.checkpoint.reader import CheckpointReader
    from ..converter.core.progress import ConsoleProgress
    from ..converter.planning.disk_forecast import check_disk
    from ..converter.storage.byte_size import memory_limit
    from .export import export as run_export
    from .preflight import check_exports, check_places, export_bytes, plan_export_memory

    progress = ConsoleProgress()
    requests = chosen_exports(exports, calibration=calibration, device=device)
    check_places(requests, out, force)
    memory = plan_export_memory(checkpoint, requests, memory_limit(max_memory))
    reader = CheckpointReader(checkpoint)
    check_exports(reader, requests, exported=True)
    shapes = {name: reader.shape(name) for name in reader.names}
    check_disk(out, export_bytes(requests, shapes, reader.config), "the exports")
    artifacts = [
        run_export(checkpoint, out / request.name, request, force=force, progress=progress) for request in requests
    ]
    document: dict[str, Any] = {"artifacts": [made.to_json() for made in artifacts]}
    lines = [f"{made.path}: {made.bytes:,} bytes, {made.bits_per_weight:.2f} bits per weight" for made in artifacts]
    if memory is not None:
        document["memory"] = memory.to_json()
        lines.append(memory.line())
    return Outcome(document, lines=tuple(lines), with_cost=True)


def imatrix(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write, llama.cpp's imatrix format.")],
    calibration: Calibration = None,
    device: Device = "auto",
    force: Force = False,
) -> Outcome:
    """Measure the importance of every input, for `export --gguf-imatrix` and llama-quantize."""
    from ..converter.core.progress import ConsoleProgress
    from .gguf.importance import export_imatrix

    found = export_imatrix(checkpoint, out, text=calibration, device=device, force=force, progress=ConsoleProgress())
    line = f"{out}: importance of {len(found.squares)} matrices, measured on {found.tokens:,} tokens"
    return Outcome({"path": str(out), "tokens": found.tokens, "matrices": sorted(found.squares)}, lines=(line,))


def runtime_build(
    tools: Annotated[
        bool, typer.Option("--tools", help="llama.cpp's programs too, from llama-cli to llama-quantize.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Build nothing: prove the build that is there, tiny models against numpy.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Build anew, even if there is a build.")] = False,
) -> Outcome:
    """Build the patched llama.cpp into the per-user cache (once), and prove that it computes what it should."""
    from ..converter.core.progress import ConsoleProgress
    from .llamacpp.runtime import check_runtime, ensure_runtime, runtime_folder
    from .llamacpp.tools import ensure_tools

    if check:
        if tools or force:
            raise UsageError("--check builds nothing: give it without --tools and --force")
        folder, proof = runtime_folder(), check_runtime(ConsoleProgress())
        failure = ResourceError(
            "llama.cpp runtime: it does not compute what it should; `lowrank-export runtime build --force` builds it "
            "anew"
        )
        return Outcome(
            {"built": True, "path": str(folder), "proof": proof.to_json()},
            lines=(f"llama.cpp runtime: {folder}", *proof.lines()),
            error=None if proof.passed else failure,
        )
    built = ensure_runtime(ConsoleProgress(), force=force)
    programs = ensure_tools(ConsoleProgress(), force=force) if tools else None
    lines = [f"llama.cpp runtime: {built}", *([f"llama.cpp tools: {programs}"] if programs else [])]
    document = {"built": True, "path": str(built), "tools": str(programs) if programs else None}
    return Outcome(document, lines=tuple(lines))


def runtime_status() -> Outcome:
    """Say whether the patched llama.cpp is built, and where."""
    from .llamacpp.runtime import find_runtime
    from .llamacpp.tools import find_tools

    found, tools = find_runtime(), find_tools()
    paths = {"path": str(found) if found else None, "tools": str(tools) if tools else None}
    lines = (
        f"llama.cpp runtime: {found or 'not built; `lowrank-export runtime build`'}",
        f"llama.cpp tools: {tools or 'not built; `lowrank-export runtime build --tools`'}",
    )
    return Outcome({"built": found is not None, **paths}, lines=lines)


def runtime_path(
    tool: Annotated[str | None, typer.Option(help="A program: llama-cli, llama-server, llama-bench, ...")] = None,
    patch: Annotated[bool, typer.Option("--patch", help="The patch for a llama.cpp of your own.")] = False,
) -> Outcome:
    """Print one path on stdout, for scripts: the runtime's folder, a program or the patch."""
    from .llamacpp.runtime import runtime_folder
    from .llamacpp.source import PATCH
    from .llamacpp.tools import tool_path

    if tool and patch:
        raise UsageError("--tool and --patch: one path at a time")
    return Outcome({}, text=str(PATCH if patch else tool_path(tool) if tool else runtime_folder()))
