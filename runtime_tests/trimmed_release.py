"""The first stage of a job with fewer tokens: the trimmed model, in the job's folder, and what that cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..converter.checkpoint.reader import read_json
from ..converter.core.errors import UsageError
from ..converter.core.progress import Progress
from ..converter.core.recipe import Recipe
from ..converter.model.source import Source
from ..converter.statistics.calibration import text_sha256
from ..converter.storage.files import replacing
from ..converter.texts.corpus import is_windows
from ..converter.vocabulary.trim import KEPT_FILE, trim
from .trimming import trim_cost

TRIMMED = "trimmed"
"""Folder in a job's: the dense model with fewer tokens, which everything after it starts from."""
RECORD = "trim.json"
PASSAGES, CHARACTERS = 16, 2000


def fewer_tokens(recipe: Recipe, out: Path) -> Recipe:
    """The recipe of everything after the trim: its model is the trimmed one."""
    update = {"model": str(out / TRIMMED), "keep_vocabulary": (), "vocabulary_size": None}
    return recipe.model_copy(update=update)


def trimmed_first(
    recipe: Recipe, source: Source, out: Path, text: str, *, force: bool, progress: Progress
) -> tuple[Recipe, dict[str, Any]]:
    """Make the trimmed model, unless it is there, and measure it.

    Args:
        recipe: with texts whose tokens are kept.
        source: its model.
        out: the job's folder.
        text: on which the cost is measured.
        force: replace the trimmed model of another recipe.
        progress: receives stages and the cost.

    Returns:
        `fewer_tokens`, and what was asked and what it cost, JSON-ready.

    Raises:
        UsageError: `out` holds another trimmed model, and `force` is not set; or windows in place of a text.
        InputError: as `trim` says.
    """
    for name in (recipe.calibration, recipe.update_calibration, text):
        if name is not None and is_windows(name):
            raise UsageError(f"{name}: windows are ids of the whole vocabulary; with fewer tokens give a text")
    place = out / TRIMMED
    asked = {
        "model": recipe.model,
        "source_sha256": source.fingerprint(),
        "texts": {name: text_sha256(name) for name in recipe.keep_vocabulary},
        "size": recipe.vocabulary_size,
        "measured_on": text,
    }
    record = place / RECORD
    kept = read_json(record) if record.is_file() else {}
    if kept.get("asked") != asked:
        unfinished = (place / KEPT_FILE).is_file() and not record.is_file()
        if place.exists() and not unfinished and not force:
            raise UsageError(f"{place}: is another model with fewer tokens; choose another --out or add --force")
        texts, size = recipe.keep_vocabulary, recipe.vocabulary_size
        made = trim(source, place, texts=texts, size=size, force=True, progress=progress)
        found = trim_cost(source, made, [text], count=PASSAGES, characters=CHARACTERS, progress=progress)
        kept = {"asked": asked, **found.to_json(), "said": list(found.lines())}
        with replacing(record, force=True, folder=False) as beside:
            beside.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    for line in kept["said"]:
        progress.note(line)
    return fewer_tokens(recipe, out), kept
