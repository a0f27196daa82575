"""Plain ONNX Runtime behind the protocol."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_export.converter.core.errors import InputError, ResourceError
from lowrank_export.runtime_tests.backends.onnxruntime import OnnxRuntimeBackend

TOKENS = np.random.default_rng(3).integers(0, 320, 30, dtype=np.int32)


@pytest.fixture(scope="module")
def exported(onnx_export: Callable[[str], tuple[Path, Any]]) -> tuple[Path, Any]:
    return onnx_export("qwen3")


def test_window_and_feed_agree_with_torch(exported: tuple[Path, Any], agrees_with_torch: Any) -> None:
    folder, model = exported
    agrees_with_torch(OnnxRuntimeBackend(folder, threads=1), model, TOKENS)


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
