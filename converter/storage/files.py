"""Write beside, check, then rename: nothing half-written is ever left in an output's place."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from ..core.errors import LowRankError, ResourceError, UsageError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        ResourceError: the disk or the memory is full, or the place is not writable; nothing is left behind, and what
            was to be replaced is as it was.
    """
    check_output(path, force)
    _remove_leftovers(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with parent_folder(path):
        try:
            remove(beside)
            if folder:
                beside.mkdir()
            yield beside
            _flush(beside)
            _move_into_place(beside, path)
            _flush_entry(path.parent)
        except BaseException as error:
            remove(beside)
            if (resource := _resource_error(error, path)) is not None:
                raise resource from None
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


def _remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed left beside `path`."""
    import psutil

    for leftover in path.parent.glob(f".{escape(path.name)}.*.partial"):
        process = leftover.name.split(".")[-2]
        if process.isdigit() and not psutil.pid_exists(int(process)):
            remove(leftover)


def _flush(path: Path) -> None:
    """Have the disk hold a file, or a folder and all files in it, before it gets its name."""
    for entry in [*path.rglob("*"), path] if path.is_dir() else [path]:
        if not entry.is_symlink():
            _flush_entry(entry)


def _flush_entry(path: Path) -> None:
    """fsync; a file system that cannot do that for folders is left alone."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _move_into_place(beside: Path, path: Path) -> None:
    """Rename, setting aside what is there until that has worked."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.replaced")
    if _occupied(path):
        path.rename(aside)
    try:
        beside.rename(path)
    except BaseException:
        if _occupied(aside):
            aside.rename(path)
        raise
    remove(aside)


def _resource_error(error: BaseException, path: Path) -> ResourceError | None:
    """The error as a resource problem, if that is what is at its root."""
    if isinstance(error, LowRankError):
        return None
    if is_disk_full(error):
        return ResourceError(f"{path.parent}: no space left on the disk; free some and run again")
    for cause in _causes(error):
        if isinstance(cause, MemoryError):
            return ResourceError(f"{path}: out of memory while it was made; free some, or use a larger machine")
        if isinstance(cause, OSError) and cause.errno in NOT_WRITABLE:
            return ResourceError(f"{path}: not writable ({cause.strerror})")
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, up to the first that has its clear line already."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, LowRankError):
        yield seen
        seen = seen.__cause__ or seen.__context__


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, is a full disk. Libraries wrap it, some keeping only its text."""
    return any(
        (isinstance(cause, OSError) and cause.errno in NO_SPACE)
        or any(os.strerror(code) in str(cause) for code in NO_SPACE)
        for cause in _causes(error)
    )


def cache_folder() -> Path:
    """The per-user cache: `$XDG_CACHE_HOME/lowrank-export`, by default `~/.cache/lowrank-export`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lowrank-export"


@contextmanager
def writable_cache() -> Iterator[None]:
    """Say what may be done where the cache cannot be made or written.

    Raises:
        ResourceError: names the cache and the variable that moves it.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_cache(folder, error) from None
    if not os.access(folder, os.W_OK):
        raise _no_cache(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    yield


def _no_cache(folder: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"{folder}: this cache cannot be written ({error.strerror}); set XDG_CACHE_HOME to a folder that can"
    )


def _occupied(path: Path) -> bool:
    """Whether something is there; a link to nothing counts."""
    return path.exists() or path.is_symlink()


def remove(path: Path) -> None:
    """Remove a file, a link or a folder; a link is never followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
