"""Outputs appear whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowrank_export.converter.core.errors import InputError, ResourceError, UsageError
from lowrank_export.converter.storage.files import cache_folder, check_output, is_disk_full, replacing


def names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("folder", [True, False])
def test_appears_at_the_end(tmp_path: Path, folder: bool) -> None:
    out = tmp_path / "deep" / "out"
    with replacing(out, force=False, folder=folder) as beside:
        (beside / "a" if folder else beside).write_text("new")
        assert not out.exists()
    assert (out / "a" if folder else out).read_text() == "new"
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("folder", [True, False])
def test_the_disk_holds_it_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool
) -> None:
    """Its bytes before the name, its entry in the folder after; no other test waits for the disk (conftest.py)."""
    flushed: list[tuple[int, bool]] = []  # what, and whether it had its name
    out = tmp_path / "out"
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append((os.fstat(file).st_ino, out.exists())))
    with replacing(out, force=False, folder=folder) as beside:
        (beside / "a" if folder else beside).write_text("new")
    written = [out / "a", out] if folder else [out]
    assert flushed == [*((path.stat().st_ino, False) for path in written), (tmp_path.stat().st_ino, True)]


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), InputError("x")])
def test_nothing_is_left_on_an_error(tmp_path: Path, folder: bool, error: BaseException) -> None:
    with pytest.raises(type(error)), replacing(tmp_path / "out", force=False, folder=folder) as beside:
        (beside / "a" if folder else beside).write_text("half")
        raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", [True, False])
def test_what_is_there_needs_force(tmp_path: Path, folder: bool) -> None:
    out = tmp_path / "out"
    out.write_text("old")
    with pytest.raises(UsageError, match="--force"), replacing(out, force=False, folder=folder):
        pytest.fail("entered")
    assert out.read_text() == "old"
    with pytest.raises(RuntimeError), replacing(out, force=True, folder=folder):
        raise RuntimeError
    assert out.read_text() == "old"
    with replacing(out, force=True, folder=folder) as beside:
        (beside / "a" if folder else beside).write_text("new")
    assert out.is_dir() == folder and names(tmp_path) == ["out"]


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not a folder"):
        check_output(tmp_path / "file" / "out", force=True)


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".out.{dead.pid}.partial").mkdir()
    living = tmp_path / f".out.{os.getppid()}.partial"
    living.mkdir()
    with replacing(tmp_path / "out", force=False, folder=False) as beside:
        beside.write_text("new")
    assert sorted(tmp_path.iterdir()) == sorted([living, tmp_path / "out"])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_is_one_line(tmp_path: Path, code: int) -> None:
    with (
        pytest.raises(ResourceError, match=r"no space left on the disk; free some"),
        replacing(tmp_path / "out", force=False, folder=True) as beside,
    ):
        (beside / "a").write_bytes(bytes(100))
        raise OSError(code, os.strerror(code))
    assert not list(tmp_path.iterdir())


def test_full_disk_inside_a_librarys_own_error() -> None:
    wrapped = RuntimeError("could not serialize")
    wrapped.__cause__ = full_disk()
    assert is_disk_full(wrapped)
    assert is_disk_full(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(errno.EACCES, "no"))


def test_an_earlier_full_disk_does_not_color_our_own_errors() -> None:
    ours = InputError("something else")
    ours.__context__ = full_disk()
    assert not is_disk_full(ours)


def test_links_are_replaced_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("kept")
    out = tmp_path / "out"
    out.symlink_to(elsewhere)
    with replacing(out, force=True, folder=True) as beside:
        (beside / "a").touch()
    assert not out.is_symlink() and names(out) == ["a"]
    assert (elsewhere / "precious").read_text() == "kept"


@pytest.mark.parametrize("folder", [True, False])
def test_link_to_nothing_counts_as_there(tmp_path: Path, folder: bool) -> None:
    out = tmp_path / "out"
    out.symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match="--force"), replacing(out, force=False, folder=folder):
        pytest.fail("entered")
    with replacing(out, force=True, folder=folder) as beside:
        (beside / "a" if folder else beside).write_text("new")
    assert not out.is_symlink() and not (tmp_path / "gone").exists()


def test_a_leftover_link_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / f".out.{os.getpid()}.partial").symlink_to(victim)
    with replacing(tmp_path / "out", force=False, folder=False) as beside:
        beside.write_text("new")
    assert victim.read_text() == "kept" and (tmp_path / "out").read_text() == "new"


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "lowrank-export"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path.home() / ".cache" / "lowrank-export"
