"""The way of a build into the cache: compiled, proven, if need be compiled again with less, and described."""

from __future__ import annotations

from pathlib import Path

from ...converter.core.progress import Progress
from .build import compile_runtime, tree_of
from .ladder import Rung, descend, rungs
from .processor import this_processor
from .proof import Proof, prove
from .record import compilers_of, write_record


def build_runtime(folder: Path, log: Path, progress: Progress) -> Path:
    """Download, patch, compile and prove; returns the folder that holds the importable `llama_cpp` and its record.

    Args:
        folder: to work in, empty or as an interrupted build left it; the result lies inside it.
        log: where the compiler's output goes.
        progress: receives the percentage, and in a line what had to be left out and why.

    Raises:
        ResourceError: no compiler, no network, the build failed, or none passes its proof.
        InputError: a download differs from its pinned hash.
    """

    def build(rung: Rung) -> Path:
        return compile_runtime(folder, log, progress, rung)

    def proven(site: Path) -> Proof:
        return prove(site, progress)

    processor = this_processor()
    built = descend(rungs(processor), build, proven, progress.note)
    record = write_record(built, processor, compilers_of(tree_of(folder, built.rung)))
    progress.note(f"llama.cpp runtime: {next(record.lines())}")
    return built.site
