"""`compress` and `statistics`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .core.outcome import Outcome
from .core.recipe_options import Given, RecipeFile, chosen_recipe, recipe_options
from .core.run_options import Force, ProcessThreads, Running, Statistics, chosen_limits, running_options

if TYPE_CHECKING:
    from .core.progress import Progress
    from .distributed.workers import Workers


@recipe_options()
@running_options()
def compress(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the factored checkpoint.")],
    given: Given,
    running: Running,
    recipe: RecipeFile = None,
    statistics: Statistics = None,
    threads: ProcessThreads = None,
    force: Force = False,
) -> Outcome | None:
    """Make a factored checkpoint; torchrun divides the work among processes, see docs/large-models.md."""
    from .distributed.joining import joined
    from .pipeline import compress as run_compress

    device = running["device"]
    with joined(device, threads) as workers:
        done = run_compress(
            chosen_recipe(recipe, given),
            out,
            device=device,
            force=force,
            statistics=statistics,
            limits=chosen_limits(running),
            progress=_progress_of(workers),
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


@recipe_options()
@running_options()
def statistics(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to keep them in; what is there already stays.")],
    given: Given,
    running: Running,
    recipe: RecipeFile = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            help="dense, gradients, fisher, sensitivity, block-error; default: what the method reads. Repeatable."
        ),
    ] = None,
    threads: ProcessThreads = None,
) -> Outcome | None:
    """Gather the statistics of the dense model that a method reads, for `compress --statistics`."""
    from .distributed.joining import joined
    from .planning.preparation import gather_statistics

    device = running["device"]
    with joined(device, threads) as workers:
        chosen = chosen_recipe(recipe, given)
        kinds = gather_statistics(
            chosen,
            out,
            kind or None,
            device=device,
            limits=chosen_limits(running),
            progress=_progress_of(workers),
            workers=workers,
        )
    if not workers.is_main_process:
        return None
    said = f"{out}: statistics of kind {' and '.join(kinds)}" if kinds else f"{chosen.method} reads no statistics"
    return Outcome({"path": str(out), "kinds": list(kinds)}, lines=(said,), with_cost=True)


def _progress_of(workers: Workers) -> Progress:
    """One process of a job reports for all."""
    from .core.progress import ConsoleProgress, SilentProgress

    return ConsoleProgress() if workers.is_main_process else SilentProgress()
