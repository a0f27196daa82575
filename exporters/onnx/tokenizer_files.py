"""The tokenizer's files in an exported folder, which read a text as the checkpoint's tokenizer.json says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ...converter.core.errors import InputError
from ...converter.model.loading import load_tokenizer, quiet_transformers, refusing
from ...converter.model.tokens import TOKENIZER
from .check.check_windows import TEXTS


def write_tokenizer(checkpoint: Path, folder: Path, context: int) -> None:
    """Write the files of the class that transformers picks, by whose name GenAI picks its own.

    Some classes have rules of their own in place of tokenizer.json's; then the checkpoint's file takes the place of
    theirs. A class that cannot be had, or is code of the model's own, is passed over.

    Args:
        checkpoint: its directory.
        folder: an existing directory; files of the same names are replaced.
        context: positions the model knows, in place of 10^30 for no limit, which GenAI does not read.

    Raises:
        InputError: transformers cannot load it.
    """
    own = load_tokenizer(checkpoint)
    picked = _picked(checkpoint) or own
    picked.model_max_length = context
    picked.save_pretrained(str(folder))
    same = all(picked(text)["input_ids"] == own(text)["input_ids"] for text in TEXTS)
    if not same and (checkpoint / TOKENIZER).is_file():
        shutil.copyfile(checkpoint / TOKENIZER, folder / TOKENIZER)


def _picked(checkpoint: Path) -> Any:
    """The tokenizer of transformers' own choice; None where it makes none."""
    from transformers import AutoTokenizer

    try:
        with refusing(checkpoint, "no usable tokenizer"), quiet_transformers():
            return AutoTokenizer.from_pretrained(str(checkpoint), local_files_only=True, trust_remote_code=False)
    except InputError:
        return None
