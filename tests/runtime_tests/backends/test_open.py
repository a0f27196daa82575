"""Which runtime opens which path."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from lowrank_export.converter.core.errors import InputError, UsageError
from lowrank_export.runtime_tests.backends.formats import artifact_format, backend_names
from lowrank_export.runtime_tests.backends.open import open_backend


def test_formats_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    for folder, file in (("onnx", "model.onnx"), ("hf", "config.json"), ("other", "notes.txt")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("{}")
    assert backend_names(tmp_path / "m.gguf") == ("llama.cpp",)
    assert backend_names(tmp_path / "onnx") == ("onnxruntime", "onnxruntime-genai")
    assert backend_names(tmp_path / "hf") == ("torch",)
    with pytest.raises(InputError, match="neither"):
        artifact_format(tmp_path / "other")
    with pytest.raises(InputError, match="no such"):
        artifact_format(tmp_path / "missing")


def test_opens_a_checkpoint(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "m", "llama")
    backend = open_backend(tmp_path / "m", "torch", threads=1, context=16)
    assert backend.name == "torch"
    backend.close()


def test_wrong_runtimes_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"did you mean 'llama\.cpp'"):
        open_backend(tmp_path, "llama-cpp", threads=1, context=16)
    with pytest.raises(UsageError, match="use torch"):
        open_backend(tmp_path, "onnxruntime", threads=1, context=16)
