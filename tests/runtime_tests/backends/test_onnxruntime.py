"""Plain ONNX Runtime behind the protocol."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_export.converter.errors import InputError, ResourceError
from lowrank_export.converter.progress import SilentProgress
from lowrank_export.exporters.onnx.export import export_onnx
from lowrank_export.runtime_tests.backends.onnxruntime import OnnxRuntimeBackend
from lowrank_export.runtime_tests.backends.protocol import Backend

TOKENS = np.random.default_rng(3).integers(0, 320, 30, dtype=np.int32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("exported")
    model = tiny.save_factored(folder / "in", "qwen3", rank=40)
    export_onnx(folder / "in", folder / "out", progress=SilentProgress())
    return folder / "out", model


def test_window_and_feed_agree_with_torch(exported: tuple[Path, Any]) -> None:
    folder, model = exported
    with torch.no_grad():
        reference = model(torch.from_numpy(TOKENS.astype(np.int64))[None]).logits[0].numpy()
    backend: Backend = OnnxRuntimeBackend(folder, threads=1)
    np.testing.assert_allclose(backend.window_logits(TOKENS), reference, atol=1e-4)
    for _ in range(2):  # the second round starts from a reset
        np.testing.assert_allclose(backend.feed(TOKENS[:12]), reference[11], atol=1e-4)
        backend.window_logits(TOKENS[::-1])  # must not disturb the fed sequence
        np.testing.assert_allclose(backend.feed(TOKENS[12:13]), reference[12], atol=1e-4)
        np.testing.assert_allclose(backend.feed(TOKENS[13:]), reference[-1], atol=1e-4)
        backend.reset()
    backend.close()
    with pytest.raises(RuntimeError, match="closed"):
        backend.feed(TOKENS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks the refusal on a machine without a GPU")
def test_cuda_is_checked_not_assumed(exported: tuple[Path, Any]) -> None:
    with pytest.raises(ResourceError, match="CUDA was asked for"):
        OnnxRuntimeBackend(exported[0], threads=1, provider="cuda")


def damage(folder: Path, kind: str) -> None:
    graph, data = folder / "model.onnx", folder / "model.onnx.data"
    if kind == "truncated data":
        data.write_bytes(data.read_bytes()[:1000])
    elif kind == "no data":
        data.unlink()
    elif kind == "garbage":
        graph.write_bytes(b"garbage" * 100)
    elif kind == "empty":
        graph.write_bytes(b"")
    elif kind == "no graph":
        graph.unlink()
    elif kind == "no config":
        (folder / "genai_config.json").unlink()


@pytest.mark.parametrize("kind", ["truncated data", "no data", "garbage", "empty", "no graph", "no config"])
def test_damaged_folder_is_one_line(
    exported: tuple[Path, Any], tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(exported[0], folder)
    damage(folder, kind)
    with pytest.raises(InputError, match=str(tmp_path)) as error:
        OnnxRuntimeBackend(folder, threads=1)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == "", "the runtime's own log stays quiet"


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no model\.onnx here"):
        OnnxRuntimeBackend(tmp_path / "nowhere", threads=1)
