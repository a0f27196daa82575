"""Records read back from artifacts agree with what their exporters returned."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.exporters.gguf.mixes import Quantization
from lowrank_export.runtime_tests.artifacts import describe


def test_checkpoint(tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.save_factored(tmp_path / "m", "llama", rank=16)
    found = describe(tmp_path / "m")
    assert (found.format, found.quantization, found.layout) == ("checkpoint", "f32", "native")
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.bytes == (tmp_path / "m" / "model.safetensors").stat().st_size
    assert describe(found) is found


@pytest.mark.parametrize("quantization", ["f16", "q8_0"])
@pytest.mark.parametrize("save", ["save_dense", "save_factored"])
def test_gguf(tiny: ModuleType, tmp_path: Path, save: str, quantization: str) -> None:
    from lowrank_export.exporters.gguf.writer import export_gguf

    getattr(tiny, save)(tmp_path / "m", "qwen2", tied=False)
    made = export_gguf(tmp_path / "m", tmp_path / "m.gguf", Quantization(quantization), progress=SilentProgress())
    assert describe(made.path) == made


@pytest.mark.parametrize("quantization", ["fp32", "int8"])
@pytest.mark.parametrize("tied", [True, False])
def test_onnx(tiny: ModuleType, tmp_path: Path, tied: bool, quantization: str) -> None:
    from lowrank_export.exporters.onnx.export import export_onnx

    tiny.save_factored(tmp_path / "m", "qwen2", tied=tied, rank=32)
    made = export_onnx(tmp_path / "m", tmp_path / "onnx", quantization=quantization, progress=SilentProgress())
    assert describe(made.path) == made


def test_damage_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF and then nothing of the kind")
    with pytest.raises(InputError, match=r"m\.gguf: damaged"):
        describe(tmp_path / "m.gguf")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"\xff\xff")
    with pytest.raises(InputError, match="not an ONNX model, or truncated"):
        describe(tmp_path / "onnx")
