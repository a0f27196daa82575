"""Building: the compiler check, progress, and failures. The real build is what the other tests run on."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from lowrank_export.converter.core.errors import ResourceError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.exporters.llamacpp import build
from lowrank_export.exporters.llamacpp.ladder import NATIVE


def test_missing_compiler_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ResourceError, match=r"no C\+\+ compiler found \(c\+\+, g\+\+, clang\+\+\).*build-essential"):
        build.compile_runtime(tmp_path, tmp_path / "log", SilentProgress(), NATIVE)
    assert list(tmp_path.iterdir()) == []


def test_compiler_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "my-compiler"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "my-compiler -flag")
    monkeypatch.setenv("CC", "my-compiler")
    build.check_compiler()
    monkeypatch.setenv("CC", "gone")
    with pytest.raises(ResourceError, match=r"no C compiler found \(gone\)"):
        build.check_compiler()


@pytest.mark.parametrize(
    ("line", "share"),
    [("  [35/70] Building CXX object", 50), ("[ 45%] Building CXX object", 45), ("[100%] Built target", 99)],
)
def test_progress_lines(line: str, share: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "x.whl").touch()
    monkeypatch.setattr(build.sys, "executable", _script(tmp_path, f"echo '{line}'"))
    assert list(build._compile(tmp_path, tmp_path / "tree", wheels, tmp_path / "log", ())) == [share]


def test_failed_build_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.sys, "executable", _script(tmp_path, "echo 'a.cpp:1: error: no'; echo bye; exit 1"))
    with pytest.raises(ResourceError, match=r"the build failed: a\.cpp:1: error: no \(full output: .*log\)"):
        list(build._compile(tmp_path, tmp_path / "tree", tmp_path, tmp_path / "log", ()))


def test_interruption_ends_the_compilers_too(tmp_path: Path) -> None:
    """A driver that holds back the signal, as cmake does, until the compiler it waits for has ended."""
    compiler = f"echo $$ >{tmp_path}/pid; echo '[1/2]'; exec sleep 60"
    driver = (
        "import signal, subprocess; signal.signal(signal.SIGTERM, lambda *_: None); "
        f"subprocess.run(['sh', '-c', {compiler!r}])"
    )
    steps = build.run_steps([sys.executable, "-c", driver], tmp_path / "log")
    assert next(steps) == 50
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt())
    assert time.monotonic() - started < 30
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_what_a_killed_compiler_may_have_left_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.os, "cpu_count", lambda: 1)
    for age, name in enumerate(["last.o", "late/lib.so", "early.o", "first.a"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / "build.ninja").touch()
    build.forget_unfinished(tmp_path)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"early.o", "first.a", "build.ninja"}
    build.forget_unfinished(tmp_path / "none")


def _script(folder: Path, text: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    assert sys.platform != "win32"
    return str(path)
