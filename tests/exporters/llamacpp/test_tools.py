"""llama.cpp's programs: what counts as built, where CMake comes from; and, where they are built, that they work."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lowrank_export.converter.core.errors import ResourceError, UsageError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.storage.gguf_header import read_header
from lowrank_export.exporters.export import export
from lowrank_export.exporters.gguf.mixes import MIXES
from lowrank_export.exporters.llamacpp import runtime, source, tools
from lowrank_export.exporters.llamacpp.ladder import Built, Rung
from lowrank_export.exporters.llamacpp.processor import this_processor
from lowrank_export.exporters.llamacpp.proof import Proof
from lowrank_export.exporters.llamacpp.record import write_record
from lowrank_export.exporters.registry import requested

WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_key_value_heads": 4}


def put(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}{tools.SUFFIX}").touch()


def test_built_when_every_program_is_there(cache: Path) -> None:
    folder = cache / tools.tools_key()
    assert tools.find_tools() is None
    with pytest.raises(ResourceError, match="not built yet; run `lowrank-export runtime build --tools`"):
        tools.tool_path("llama-bench")
    put(folder, *tools.TOOLS[1:])
    assert tools.find_tools() is None
    put(folder, *tools.TOOLS)
    assert tools.find_tools() == folder
    assert tools.tool_path("llama-bench") == folder / f"llama-bench{tools.SUFFIX}"


def test_unknown_tool_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'llama-bench'"):
        tools.tool_path("lama-bench")


def test_key_differs_from_the_librarys_and_follows_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    key = tools.tools_key()
    assert key.startswith(f"{source.VERSION}-tools-") and key != runtime.runtime_key()
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=ON")
    assert tools.tools_key() != key


def test_what_the_library_does_without_the_tools_do_without(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, built = tools.tools_key(), cache / runtime.runtime_key()
    (built / "llama_cpp" / "lib").mkdir(parents=True)
    assert tools.tools_key() == before
    rung = Rung("no-x", "X", ("-DGGML_X=OFF",))
    write_record(Built(built, rung, Proof(1, 1.0, (), {}), ()), this_processor(), {})
    assert tools.tools_key() != before
    commands: list[list[str]] = []

    def steps(command: list[str], *_: Any) -> Any:
        commands.append(command)
        raise ResourceError("far enough")

    monkeypatch.setattr(tools, "run_steps", steps)
    monkeypatch.setattr(tools, "prepared_source", lambda folder: folder)
    monkeypatch.setattr(tools, "find_cmake", lambda folder: (["cmake"], {}))
    with pytest.raises(ResourceError, match="far enough"):
        tools.ensure_tools(SilentProgress())
    assert "-DGGML_X=OFF" in commands[0] and "-DGGML_NATIVE=ON" not in commands[0]


def test_failed_build_leaves_nothing_that_counts(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path, log: Path, progress: Any) -> Path:
        put(folder / "programs", *tools.TOOLS)
        raise ResourceError("no")

    monkeypatch.setattr(tools, "build_tools", broken)
    with pytest.raises(ResourceError, match="no"):
        tools.ensure_tools(SilentProgress())
    assert tools.find_tools() is None
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_cmake_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cmake", "make"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tools.find_cmake(tmp_path / "none")[0] == ["cmake"]
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("there", [[], ["cmake"]])
def test_cmake_from_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: list[str]) -> None:
    """Without CMake, or without anything that it could drive."""
    for name in there:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    commands: list[list[str]] = []

    def pip(command: list[str], **_: Any) -> SimpleNamespace:
        commands.append(command)
        Path(command[command.index("--target") + 1]).mkdir()
        return SimpleNamespace(returncode=len(commands) - 1, stderr="ERROR: no network\n")

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tools.subprocess, "run", pip)
    command, environment = tools.find_cmake(tmp_path / "own")
    assert command[1:] == ["-P", "-m", "cmake"] and environment["CMAKE_GENERATOR"] == "Ninja"
    assert environment["PATH"].startswith(str(tmp_path / "own" / "bin"))
    assert commands[0][-2:] == ["cmake", "ninja"] and (tmp_path / "own").is_dir()
    assert tools.find_cmake(tmp_path / "own")[0] == command and len(commands) == 1  # a build before had it
    with pytest.raises(ResourceError, match="pip could not get it: ERROR: no network"):
        tools.find_cmake(tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.fixture(scope="module")
def built() -> Path:
    found = tools.find_tools()
    if found is None:
        pytest.skip("llama.cpp's tools are not built: `lowrank-export runtime build --tools`")
    return found


@pytest.fixture(scope="module")
def factored(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    tiny.save_factored(folder / "model", "llama", rank=64, **WIDE)
    return export(folder / "model", folder / "m.gguf", requested("gguf", "f32")).path


def call(tool: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [str(tools.tool_path(tool)), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, stdin=subprocess.DEVNULL)


def test_bench_times_a_factored_file(built: Path, factored: Path) -> None:
    done = call("llama-bench", "-m", factored, "-p", 8, "-n", 4, "-r", 1, "-t", 1, "-o", "json")
    rows = json.loads(done.stdout)
    assert [(row["n_prompt"], row["n_gen"]) for row in rows] == [(8, 0), (0, 4)]
    assert all(row["avg_ts"] > 0 for row in rows)


def test_perplexity_of_a_factored_file(built: Path, factored: Path, tiny: ModuleType, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(tiny.TEXT)
    dense = export(factored.parent / "model", tmp_path / "d.gguf", requested("gguf", "f32", layout="dense"))
    found = []
    for path in (factored, dense.path):
        for _ in range(3):  # its figures go through a logging thread that loses lines on a busy machine
            done = call("llama-perplexity", "-m", path, "-f", text, "-c", 64, "--chunks", 2, "-t", 1)
            first = re.search(r"\[1\](\d+\.\d+)", done.stdout)
            if first is not None:
                break
        assert first is not None, done.stdout + done.stderr
        found.append(float(first[1]))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_options_give_factors_the_types_of_this_projects_mix(built: Path, factored: Path, tmp_path: Path) -> None:
    """The options that docs/gguf.md names: without them a mix gives most factors its base type."""
    options = ["--tensor-type", "attn.*lowrank=q6_k", "--tensor-type", "ffn_down.*lowrank=q6_k"]
    call("llama-quantize", *options, factored, tmp_path / "q.gguf", "Q4_K_M", 1)
    made = export(factored.parent / "model", tmp_path / "o.gguf", requested("gguf", "q4_k_m"))
    found = {tensor.name: tensor.type for tensor in read_header(tmp_path / "q.gguf").tensors}
    assert found == {tensor.name: tensor.type for tensor in made.tensors}


@pytest.mark.parametrize("name", ["q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q4_0", "iq4_nl"])
def test_quantize_writes_a_file_that_still_runs(built: Path, factored: Path, tmp_path: Path, name: str) -> None:
    call("llama-quantize", factored, tmp_path / "q.gguf", name.upper(), 1)
    header = read_header(tmp_path / "q.gguf")
    assert header.metadata["general.file_type"] == MIXES[name].file_type
    assert header.metadata["lowrank.version"] == 1
    done = call("llama-bench", "-m", tmp_path / "q.gguf", "-p", 4, "-n", 0, "-r", 1, "-t", 1, "-o", "json")
    assert json.loads(done.stdout)[0]["avg_ts"] > 0
