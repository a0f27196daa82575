"""Does the tokenizers library survive a tokenizer.json? A panic of its Rust can end the process: tried elsewhere."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from ..core.errors import InputError
from ..core.signals import signal_words

FILE = "tokenizer.json"
OTHERS = ("*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json")
"""Files that hold the vocabulary where there is no tokenizer.json."""
SENTENCEPIECE = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
"""Packages that read a tokenizer.model, and the module of each."""
# -P: the folder that the command is run in may be a model's, and its files no modules
COMMAND = ("-P", "-c", "import sys; from tokenizers import Tokenizer; Tokenizer.from_file(sys.argv[1]).encode('a 1')")


def check_tokenizer_file(folder: Path) -> None:
    """Load a folder's tokenizer.json, where it has one, elsewhere; once per file and process.

    Raises:
        InputError: there is no tokenizer, a package that reads it is not installed, or the process that loaded it was
            ended by a signal.
    """
    if (file := folder / FILE).is_file():
        state = file.stat()
        _tried(file, state.st_mtime_ns, state.st_size)
        return
    found = [entry for pattern in OTHERS for entry in sorted(folder.glob(pattern)) if entry.is_file()]
    if not found and folder.is_dir():
        raise InputError(
            f"{folder}: no usable tokenizer: neither {FILE} nor tokenizer.model nor vocab.json lies there; "
            "copy the tokenizer's files from the model it belongs to"
        )
    if found and _is_sentencepiece(found[0]):
        lacking = [name for name, module in SENTENCEPIECE.items() if not _installed(module)]
        if lacking:
            raise InputError(
                f"{found[0]}: no usable tokenizer: {' and '.join(SENTENCEPIECE)} read this one, which has no {FILE} "
                f"beside it: pip install {' '.join(lacking)}"
            )


def _is_sentencepiece(file: Path) -> bool:
    """Whether it is a model of sentencepiece: a message of protobuf, whose first field is the list of pieces."""
    with file.open("rb") as stream:
        return file.suffix == ".model" and stream.read(1) == b"\n"


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # its parent is not there
        return False


@lru_cache(maxsize=256)
def _tried(file: Path, changed: int, size: int) -> None:
    command = [sys.executable, *COMMAND, str(file)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603
    if done.returncode < 0:  # a refusal is met again, in a line of the library's own
        how = signal_words(-done.returncode)
        raise InputError(f"{file}: no usable tokenizer: the tokenizers library ends the process over it: {how}")
