"""Folders that a command owns: whether one may be written into, and one to work in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...converter.core.errors import UsageError
from ...converter.storage.files import remove


def check_own_folder(out: Path, mark: str) -> None:
    """Refuse a folder that is neither new or empty nor one of the same command, which holds a folder `mark`.

    Raises:
        UsageError: something else is there.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is not a folder")
    foreign = out.is_dir() and any(not entry.name.startswith(".") for entry in out.iterdir())
    if foreign and not (out / mark).is_dir():
        raise UsageError(f"{out}: exists and is not empty; choose another --out; it is not a folder this command made")


@contextmanager
def work_folder(out: Path, name: str, mark: str) -> Iterator[Path]:
    """A new folder in `out` for logs and logits, removed afterwards; `out` gets its mark.

    Args:
        out: the command's folder, made if need be.
        name: of the folder; what a killed command left there goes first.
        mark: see `check_own_folder`.
    """
    work = out / name
    remove(work)
    work.mkdir(parents=True)
    (out / mark).mkdir(exist_ok=True)
    try:
        yield work
    finally:
        remove(work)
