"""A finished file is read back: whatever differs from what was meant is noticed."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.exporters.artifact import TensorRecord
from lowrank_export.exporters.gguf.file import verify_file
from lowrank_export.exporters.gguf.mixes import Quantization
from lowrank_export.exporters.gguf.writer import export_gguf


def test_read_back_notices(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_factored(tmp_path / "factored", "llama", rank=20)
    out = tmp_path / "m.gguf"
    artifact = export_gguf(tmp_path / "factored", out, Quantization("f16"), progress=SilentProgress())
    first, *rest = artifact.tensors
    verify_file(artifact.path, artifact.tensors)
    with pytest.raises(InputError, match=f"unexpected tensor '{first.name}'"):
        verify_file(artifact.path, tuple(rest))
    with pytest.raises(InputError, match="'extra' is missing"):
        verify_file(artifact.path, (*artifact.tensors, TensorRecord("extra", (2,), "f32", 8)))
    with pytest.raises(InputError, match="token_embd"):
        verify_file(artifact.path, (TensorRecord(first.name, first.shape, "f32", first.bytes), *rest))
