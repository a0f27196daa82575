"""What the tests of malformed input share: sound files to damage, and how a refusal must look. No network is there."""

from __future__ import annotations

import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from lowrank_export.cli import app
from lowrank_export.converter.storage.files import cache_folder
from lowrank_export.exporters.export import export
from lowrank_export.exporters.registry import requested

ROOM = 300 * 2**20  # bytes of memory that refusing a file may cost, libraries that are imported for it included
Refused = Callable[..., str]


@pytest.fixture(scope="session")
def models(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with "dense", "factored", "pivot", "m.gguf" (factored), "d.gguf" (dense), "onnx" and "text.txt"."""
    folder = tmp_path_factory.mktemp("sound")
    tiny.save_dense(folder / "dense", "llama")
    tiny.save_factored(folder / "factored", "llama", rank=16)
    tiny.save_factored(folder / "pivot", "llama", rank=16, layout="pivot")
    export(folder / "factored", folder / "m.gguf", requested("gguf"))
    export(folder / "dense", folder / "d.gguf", requested("gguf", "f32"))
    export(folder / "factored", folder / "onnx", requested("onnx"))
    (folder / "text.txt").write_text(tiny.TEXT, encoding="utf-8")
    return folder


@pytest.fixture
def copied(models: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one of them, to damage."""

    def copy(name: str) -> Path:
        found, made = models / name, tmp_path / name
        shutil.copytree(found, made) if found.is_dir() else shutil.copyfile(found, made)
        return made

    return copy


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own, a cache of its own, and no network: whoever asks for it fails the test."""
    asked: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        asked.append(arguments[-1])
        raise OSError("no network here")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    (tmp_path / "cache" / "lowrank-export").mkdir(parents=True)
    (tmp_path / "cache" / "lowrank-export" / "llama.cpp").symlink_to(cache_folder() / "llama.cpp")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert not asked, asked


def peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture
def refused() -> Refused:
    """Run a command that must be refused: one line, the exit code, nothing on stdout, nothing left, little memory."""

    def check(*arguments: Any, code: int, needle: str = "") -> str:
        before = peak()
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert result.exit_code == code, (result.exit_code, result.stderr[-2000:], result.exception)
        assert len(lines) == 1 and result.stderr.rstrip("\n").endswith(lines[0]), result.stderr[-2000:]
        assert needle in lines[0] and len(lines[0]) < 2100, lines[0]
        assert "Traceback" not in result.stderr and "bug:" not in lines[0] and result.stdout == ""
        assert lines[0].isprintable()
        assert peak() - before < ROOM
        assert not list(Path.cwd().iterdir()), list(Path.cwd().iterdir())
        return lines[0]

    return check
