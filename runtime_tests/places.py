"""Whether a folder may be written into."""

from __future__ import annotations

from pathlib import Path

from ..converter.errors import UsageError


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
