"""The main job for a size: what is chosen, and the best plain file of that size that it has to beat."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..converter.checkpoint.reader import read_json
from ..converter.core.progress import Progress
from ..converter.core.recipe import Recipe
from ..converter.model.source import Source
from ..converter.statistics.calibration import Tokens
from ..converter.storage.byte_size import MemoryLimits
from ..converter.storage.files import replacing
from ..exporters.artifact import Artifact
from ..exporters.budget.format import Format
from ..exporters.budget.search import Found
from ..exporters.budget.sized import sized
from ..exporters.target import ExportRequest
from .backends.formats import TORCH, backend_names
from .backends.open import open_backend
from .metrics.measure import measure
from .metrics.reference_logits import ReferenceLogits
from .metrics.windows import Windows

SIZE_FILE, HELD_OUT_FILE = ".size.json", ".held-out.npy"
STATISTICS = ".statistics"
HELD_OUT_WINDOWS, HELD_OUT_TOKENS = 2, 1024


@dataclass(frozen=True)
class Plain:
    """The best plain file of a size, by prediction.

    Attributes:
        type: of all linears.
        rest: of embedding and head.
        tied: whether they are one matrix.
        recipe: whose choice is that.
    """

    type: str
    rest: str
    tied: bool
    recipe: Recipe

    def request(self, chosen: ExportRequest) -> ExportRequest:
        """Its export, rounded as the choice is.

        Args:
            chosen: the export of the choice.
        """
        return chosen.plain(self.type, self.rest, tied=self.tied)


@dataclass(frozen=True)
class Settled:
    """What a size is spent on.

    Attributes:
        recipe: with the choice.
        facts: budget, bytes and predicted loss, of the choice and of the best plain one, JSON-ready.
        plain: the best plain one; None where none is that small.
        held_out: windows that nothing is fitted on, (N, T).
    """

    recipe: Recipe
    facts: dict[str, Any]
    plain: Plain | None
    held_out: Tokens

    @property
    def choices(self) -> list[Mapping[str, str]]:
        """Those that the job's checkpoint can be of."""
        return [recipe.choice for recipe in (self.recipe, self.plain and self.plain.recipe) if recipe]

    def beaten(self, chosen: Artifact, plain: Artifact, dense: Path, threads: int, progress: Progress) -> bool:
        """Whether the plain file is closer to the dense model than the chosen one, on the windows held out.

        Args:
            chosen, plain: their artifacts, of one format.
            dense: the dense checkpoint.
            threads: CPU threads of the runtimes.
            progress: receives stages, and of both figures.

        Returns:
            False, too, where no windows are held out: the prediction stands then. `facts` says what was measured.
        """
        if not len(self.held_out):
            return False
        windows = Windows.whole(self.held_out[:HELD_OUT_WINDOWS, :HELD_OUT_TOKENS])
        backend = open_backend(dense, TORCH, threads=threads, context=windows.length)
        try:
            reference = ReferenceLogits.record(
                backend, windows, chosen.path.parent / ".held-out.f32", progress, label="held out"
            )
        finally:
            backend.close()
        with reference:
            found = {
                name: _divergence(artifact, windows, reference, threads, progress)
                for name, artifact in (("chosen", chosen), ("plain", plain))
            }
        self.facts["held_out_kld"] = found
        limited, worse = self.recipe.max_prefill_flops, found["plain"] < found["chosen"]
        shipped = "plain types are better, and are what is shipped" if worse else "the choice is shipped"
        if limited is not None and worse:
            shipped = f"the choice is shipped, since plain types take more than {limited} of the operations"
            worse = False
        progress.note(f"held-out KLD {found['chosen']:.4f}, best plain types {found['plain']:.4f}: {shipped}")
        self.facts["shipped"] = "plain" if worse else "chosen"
        if worse:
            self.facts.pop("matrices", None)  # of a choice that is not what the report is about
        return worse


def settle(
    recipe: Recipe,
    source: Source,
    request: ExportRequest,
    out: Path,
    *,
    statistics: Path,
    device: str,
    limits: MemoryLimits,
    progress: Progress,
) -> Settled:
    """Choose what a size is spent on, or read what was chosen before the job was cut short.

    Args:
        recipe: with a size.
        source: its model.
        request: the export that the size is of.
        out: the job's folder.
        statistics: a folder where they are kept.
        device: "auto", "cpu", "cuda".
        limits: of memory.
        progress: receives stages, and of the choice.
    """
    path = out / SIZE_FILE
    kept, format = read_json(path) if path.is_file() else {}, request.budget(progress)
    asked = {"asked": recipe.model_dump(mode="json"), "format": format.name, "source_sha256": source.fingerprint()}
    if any(kept.get(key) != value for key, value in asked.items()):
        found = sized(recipe, source, statistics, request, device=device, limits=limits, progress=progress)
        out.mkdir(parents=True, exist_ok=True)
        plain = found.plain
        facts = {
            "budget": found.budget,
            "chosen": _facts(found.found),
            "plain": plain and {**_facts(plain.found), "type": plain.type, "rest": plain.rest},
            "matrices": _matrices(found.found, source, format),
        }
        kept = {
            **asked,
            "facts": facts,
            "choice": dict(found.found.recipe.choice),
            "plain": plain and dict(plain.found.recipe.choice),
        }
        np.save(out / HELD_OUT_FILE, found.held_out)
        with replacing(path, force=True, folder=False) as beside:
            Path(beside).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    chosen = recipe.model_copy(update={"choice": kept["choice"]})
    progress.note(line(chosen, kept["facts"]))
    held_out = np.load(out / HELD_OUT_FILE) if (out / HELD_OUT_FILE).is_file() else np.zeros((0, 1), dtype=np.int32)
    return Settled(chosen, kept["facts"], kept["plain"] and _plain(recipe, kept, source), held_out)


def line(recipe: Recipe, facts: dict[str, Any]) -> str:
    """What was chosen, in a line."""
    forms = recipe.forms.values()
    factored = sum(form.rank is not None for form in forms)
    chosen = facts["chosen"]
    size = f"{chosen['bytes'] / 1e6:.1f} MB of {facts['budget'] / 1e6:.1f}"
    flops = f"{chosen['prefill_flops']:.0%} of a prompt's operations"
    return (
        f"{size}: {factored} of {len(forms)} matrices become two factors, {flops}; predicted KLD {chosen['loss']:.3f}"
    )


def _divergence(
    artifact: Artifact, windows: Windows, reference: ReferenceLogits, threads: int, progress: Progress
) -> float:
    runtime = backend_names(artifact.path)[0]
    backend = open_backend(artifact.path, runtime, threads=threads, context=windows.length + 1)
    try:
        found = measure(backend, windows, [reference], progress, label=f"held out: {artifact.path.name}")
        return found.parities[0].mean_kld
    finally:
        backend.close()


def _matrices(found: Found, source: Source, format: Format) -> dict[str, dict[str, Any]]:
    """Module -> its form, what that takes in bits per weight of the dense matrix, and its predicted loss."""
    reader, described = source.reader(), {}
    for module, form in found.recipe.forms.items():
        m, n = reader.shape(module + ".weight")
        shapes = [(m, n)] if form.rank is None else [(m, form.rank), (form.rank, n)]
        stored = sum(format.bytes(shape, type) for shape, type in zip(shapes, form.types, strict=True))
        described[module] = {"form": str(form), "bits": 8 * stored / (m * n), "loss": found.losses[module]}
    return described


def _facts(found: Found) -> dict[str, Any]:
    return {"bytes": found.bytes, "loss": found.loss, "prefill_flops": found.flops}


def _plain(recipe: Recipe, kept: dict[str, Any], source: Source) -> Plain:
    facts, tied = kept["facts"]["plain"], source.family.head not in kept["plain"]
    return Plain(facts["type"], facts["rest"], tied, recipe.model_copy(update={"choice": kept["plain"]}))
