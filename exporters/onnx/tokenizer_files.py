"""The tokenizer's files in an exported folder, which read a text as the checkpoint's tokenizer.json says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ...converter.model.loading import load_tokenizer, quiet_transformers, refusing
from ...converter.model.tokens import TOKENIZER
from .check.check_windows import TEXTS


def write_tokenizer(checkpoint: Path, folder: Path) -> None:
    """Write the files of the class that transformers picks, by whose name GenAI picks its own.

    Some classes have rules of their own in place of tokenizer.json's; then the checkpoint's file takes the place of
    theirs.

    Args:
        checkpoint: its directory.
        folder: an existing directory; files of the same names are replaced.

    Raises:
        InputError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    own = load_tokenizer(checkpoint)
    with refusing(checkpoint, "no usable tokenizer"), quiet_transformers():
        picked: Any = AutoTokenizer.from_pretrained(str(checkpoint), local_files_only=True, trust_remote_code=False)
        picked.save_pretrained(str(folder))
        same = all(picked(text)["input_ids"] == own(text)["input_ids"] for text in TEXTS)
    if not same and (checkpoint / TOKENIZER).is_file():
        shutil.copyfile(checkpoint / TOKENIZER, folder / TOKENIZER)
