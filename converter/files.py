"""Write beside, check, then rename: nothing half-written is ever left in an output's place."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import LowRankError, ResourceError, UsageError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_output(path: Path, force: bool) -> None:
    """Refuse to write over something that exists.

    Raises:
        UsageError: `path` exists and `force` is not set, or its parent is not a folder.
    """
    if _occupied(path) and not force:
        raise UsageError(f"{path}: already exists; choose another name or add --force to replace it")
    if path.parent.exists() and not path.parent.is_dir():
        raise UsageError(f"{path.parent}: is not a folder")


@contextmanager
def replacing(path: Path, *, force: bool, folder: bool) -> Iterator[Path]:
    """Give a name beside `path` to write to; when the block ends without an error, move it into place.

    Args:
        path: the final name.
        force: replace what is there.
        folder: the output is a directory (created empty) rather than a file.

    Raises:
        UsageError: the output exists and `force` is not set.
        ResourceError: the disk is full; nothing is left behind.
    """
    check_output(path, force)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with parent_folder(path):
        try:
            remove(beside)
            if folder:
                beside.mkdir()
            yield beside
            if _occupied(path):
                remove(path)
            beside.rename(path)
        except BaseException as error:
            remove(beside)
            if is_disk_full(error):
                raise ResourceError(f"{path.parent}: no space left on the disk; free some and run again") from None
            raise


@contextmanager
def parent_folder(path: Path) -> Iterator[None]:
    """Make the folder that `path` lies in; if the block fails, remove it again unless it was there before."""
    existed = path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if not existed:
            with suppress(OSError):  # something else was put there meanwhile
                path.parent.rmdir()
        raise


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, is a full disk. Libraries wrap it, some keeping only its text."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, LowRankError):
        if isinstance(seen, OSError) and seen.errno in NO_SPACE:
            return True
        if any(os.strerror(code) in str(seen) for code in NO_SPACE):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def cache_folder() -> Path:
    """The per-user cache: `$XDG_CACHE_HOME/lowrank-export`, by default `~/.cache/lowrank-export`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lowrank-export"


def _occupied(path: Path) -> bool:
    """Whether something is there; a link to nothing counts."""
    return path.exists() or path.is_symlink()


def remove(path: Path) -> None:
    """Remove a file, a link or a folder; a link is never followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
