"""The main job for a size: what is chosen, and the best plain file of that size that it has to beat."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..converter.checkpoint.reader import read_json
from ..converter.core.progress import Progress
from ..converter.core.recipe import Recipe
from ..converter.model.source import Source
from ..converter.storage.byte_size import MemoryLimits
from ..converter.storage.files import replacing
from ..exporters.budget.search import Found
from ..exporters.budget.sized import sized

SIZE_FILE = ".size.json"
STATISTICS = ".statistics"


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

    @property
    def types(self) -> tuple[str | None, str | None]:
        """Types of embedding and head, as an export takes them."""
        return self.rest, None if self.tied else self.rest


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


def settle(
    recipe: Recipe,
    source: Source,
    out: Path,
    checkpoint: str,
    *,
    statistics: Path | None = None,
    device: str,
    limits: MemoryLimits,
    progress: Progress,
) -> Settled:
    """Choose what a size is spent on, or read what was chosen before the job was cut short.

    Args:
        recipe: with a size.
        source: its model.
        out: the job's folder.
        checkpoint: name of the folder of the factored checkpoint in it.
        statistics: a folder where they are kept; by default one in `out` that goes when the job is done.
        device: "auto", "cpu", "cuda".
        limits: of memory.
        progress: told about stages, and of the choice.
    """
    path = out / SIZE_FILE
    kept = read_json(path) if path.is_file() else {}
    if kept.get("asked") != recipe.model_dump(mode="json") or kept.get("source_sha256") != source.fingerprint():
        found = sized(
            recipe,
            source,
            statistics or out / STATISTICS,
            name=checkpoint,
            device=device,
            max_memory=limits.process,
            max_device_memory=limits.device,
            progress=progress,
        )
        out.mkdir(parents=True, exist_ok=True)
        plain = found.plain
        facts = {
            "budget": found.budget,
            "chosen": _facts(found.found),
            "plain": plain and {**_facts(plain.found), "type": plain.type, "rest": plain.rest},
        }
        kept = {
            "asked": recipe.model_dump(mode="json"),
            "source_sha256": source.fingerprint(),
            "facts": facts,
            "choice": dict(found.found.recipe.choice),
            "plain": plain and dict(plain.found.recipe.choice),
        }
        with replacing(path, force=True, folder=False) as beside:
            Path(beside).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    chosen = recipe.model_copy(update={"choice": kept["choice"]})
    progress.note(line(chosen, kept["facts"]))
    return Settled(chosen, kept["facts"], kept["plain"] and _plain(recipe, kept, source))


def line(recipe: Recipe, facts: dict[str, Any]) -> str:
    """What was chosen, in a line."""
    forms = recipe.forms.values()
    factored = sum(form.rank is not None for form in forms)
    chosen = facts["chosen"]
    size = f"{chosen['bytes'] / 1e6:.1f} MB of {facts['budget'] / 1e6:.1f}"
    return f"{size}: {factored} of {len(forms)} matrices become two factors; predicted KLD {chosen['loss']:.3f}"


def _facts(found: Found) -> dict[str, Any]:
    return {"bytes": found.bytes, "loss": found.loss}


def _plain(recipe: Recipe, kept: dict[str, Any], source: Source) -> Plain:
    facts, tied = kept["facts"]["plain"], source.family.head not in kept["plain"]
    return Plain(facts["type"], facts["rest"], tied, recipe.model_copy(update={"choice": kept["plain"]}))
