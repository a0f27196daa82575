"""Records read back from artifacts agree with what their exporters returned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.exporters.gguf.mixes import Quantization
from lowrank_export.runtime_tests.artifacts import describe, find_artifacts
from lowrank_export.runtime_tests.report.provenance import weights_sha256


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


@pytest.fixture(scope="module", params=["f16", "q8_0"])
def whole(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    from lowrank_export.exporters.gguf.writer import export_gguf

    folder = tmp_path_factory.mktemp("whole")
    tiny.save_factored(folder / "m", "llama", rank=16, layout="pivot")
    return export_gguf(folder / "m", folder / "m.gguf", Quantization(request.param), progress=SilentProgress()).path


@pytest.mark.parametrize("cuts", [(5,), (1, 2, 9)])
def test_gguf_in_parts(whole: Path, tmp_path: Path, cuts: tuple[int, ...], gguf_files: ModuleType) -> None:
    """Any part stands for the whole file, which a folder of parts holds once."""
    parts = gguf_files.split(whole, tmp_path, cuts)
    expected = describe(whole)
    for part in parts:
        found = describe(part)
        assert replace(found, path=whole, bytes=0) == replace(expected, bytes=0)
        assert found.bytes == sum(one.stat().st_size for one in parts) >= expected.bytes
    assert find_artifacts(tmp_path) == parts[:1]
    assert len({weights_sha256(part) for part in parts}) == 1 and weights_sha256(parts[0]) != weights_sha256(whole)
    before = weights_sha256(parts[0])
    data = bytearray(parts[-1].read_bytes())
    data[-1] ^= 1
    parts[-1].write_bytes(data)
    assert weights_sha256(parts[0]) != before
    parts[-1].rename(tmp_path / "away")
    with pytest.raises(InputError, match=rf"{parts[-1].name} is not beside it"):
        describe(parts[0])


def test_the_magic_tells_what_a_file_is(whole: Path, tmp_path: Path) -> None:
    for name in ("noext", "UP.GGUF"):
        (tmp_path / name).write_bytes(whole.read_bytes())
        assert replace(describe(tmp_path / name), path=whole) == describe(whole)
    assert find_artifacts(tmp_path) == [tmp_path / "UP.GGUF", tmp_path / "noext"]
