"""A runtime that ends by a signal: which one, and whether the file or the runtime is to blame."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from lowrank_export.converter.core.errors import InputError, ResourceError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.exporters.gguf.mixes import Quantization
from lowrank_export.exporters.gguf.writer import export_gguf
from lowrank_export.exporters.llamacpp import proof, runtime
from lowrank_export.runtime_tests import child
from lowrank_export.runtime_tests.backends import trial
from lowrank_export.runtime_tests.metrics import footprint

BROKEN = """
import os, signal
__path__.insert(0, {real!r})
from . import llama_cpp

load = llama_cpp.llama_model_load_from_file


def dying(path, options):
    if {word!r} in path.decode():
        os.kill(os.getpid(), signal.SIGILL)
    return load(path, options)


llama_cpp.llama_model_load_from_file = dying
"""


@pytest.fixture
def model(tiny: ModuleType, tmp_path: Path) -> Path:
    tiny.save_dense(tmp_path / "dense", "llama")
    return export_gguf(
        tmp_path / "dense",
        tmp_path / "mine-f32.gguf",
        Quantization("f32"),
        progress=SilentProgress(),
    ).path


@pytest.mark.parametrize("word", ["f32", "mine"])
def test_llama_cpp(
    model: Path, llama_cpp_runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """A runtime that dies over every float32 model, and one that dies over this file alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package = runtime.cache_folder() / runtime.runtime_key() / "llama_cpp"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text(BROKEN.format(real=str(llama_cpp_runtime / "llama_cpp"), word=word))
    monkeypatch.setattr(
        trial,
        "check_runtime",
        lambda progress: proof.prove(runtime.runtime_folder(), progress, kinds=("f32",), layouts=("dense",)),
    )
    trial._runtime_proof.cache_clear()
    with pytest.raises(ResourceError if word == "f32" else InputError) as caught:
        trial.check_survives(model, "llama.cpp")
    trial._runtime_proof.cache_clear()
    said = str(caught.value)
    assert said.startswith(
        f"{model}: llama.cpp ends the process that loads this file: illegal instruction (SIGILL); the"
    )
    if word == "f32":
        assert "fails its own proof too (illegal instruction (SIGILL) in f32" in said and "not the model" in said
        assert "`lowrank-export runtime build --check`" in said
    else:
        assert said.endswith("the runtime passes its own proof, so it is the file that it cannot be given")


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-genai"])
def test_other_runtimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "model.onnx").touch()
    ended = SimpleNamespace(returncode=-signal.SIGSEGV, stderr=b"")
    monkeypatch.setattr(trial.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(InputError, match=rf"{name} ends .*: segmentation fault \(SIGSEGV\); `lowrank-export doctor`"):
        trial.check_survives(tmp_path, name)


def test_memory_measured_in_a_process_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.CompletedProcess([], -signal.SIGILL, "", "a line of no interest\n")
    monkeypatch.setattr(footprint.subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(ResourceError, match=r"memory of llama\.cpp failed: its process was ended: illegal instruction"):
        footprint.measure_footprint(tmp_path, "llama.cpp", threads=1, context=8, prompt_tokens=4)


def test_a_command_that_dies() -> None:
    found = child._error(-signal.SIGBUS, "some line\n")
    assert isinstance(found, RuntimeError) and "bus error (SIGBUS)" in str(found) and "some line" in str(found)
