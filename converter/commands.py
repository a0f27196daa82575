"""`statistics`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .core.outcome import Outcome
from .core.recipe_options import VOCABULARY, Given, RecipeFile, chosen_recipe, recipe_options
from .core.run_options import ProcessThreads, Running, chosen_limits, running_options

if TYPE_CHECKING:
    from .core.progress import Progress
    from .distributed.workers import Workers


@recipe_options(*VOCABULARY)
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
            progress=progress_of(workers),
            workers=workers,
        )
    if not workers.is_main_process:
        return None
    said = f"{out}: statistics of kind {' and '.join(kinds)}" if kinds else f"{chosen.method} reads no statistics"
    return Outcome({"path": str(out), "kinds": list(kinds)}, lines=(said,), with_cost=True)


def progress_of(workers: Workers) -> Progress:
    """One process of a job reports for all."""
    from .core.progress import ConsoleProgress, SilentProgress

    return ConsoleProgress() if workers.is_main_process else SilentProgress()
