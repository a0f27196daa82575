"""Does the tokenizers library survive a tokenizer.json? A panic of its Rust can end the process: tried elsewhere."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from ..core.errors import InputError
from ..core.signals import signal_words

FILE = "tokenizer.json"
# -P: the folder that the command is run in may be a model's, and its files no modules
COMMAND = ("-P", "-c", "import sys; from tokenizers import Tokenizer; Tokenizer.from_file(sys.argv[1]).encode('a 1')")


def check_tokenizer_file(folder: Path) -> None:
    """Load a folder's tokenizer.json, where it has one, elsewhere; once per file and process.

    Raises:
        InputError: the process that loaded it was ended by a signal.
    """
    if (file := folder / FILE).is_file():
        state = file.stat()
        _tried(file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=256)
def _tried(file: Path, changed: int, size: int) -> None:
    command = [sys.executable, *COMMAND, str(file)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603
    if done.returncode < 0:  # a refusal is met again, in a line of the library's own
        how = signal_words(-done.returncode)
        raise InputError(f"{file}: no usable tokenizer: the tokenizers library ends the process over it: {how}")
