"""ONNX Runtime GenAI behind the protocol."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_export.converter.core.errors import InputError, ResourceError
from lowrank_export.runtime_tests.backends.genai import GenAiBackend
from lowrank_export.runtime_tests.metrics.footprint import measure_footprint

TOKENS = np.random.default_rng(4).integers(1, 320, 30, dtype=np.int32)


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def exported(request: pytest.FixtureRequest, onnx_export: Callable[[str], tuple[Path, Any]]) -> tuple[Path, Any]:
    return onnx_export(request.param)


def test_window_and_feed_agree_with_torch(exported: tuple[Path, Any], agrees_with_torch: Any) -> None:
    folder, model = exported
    agrees_with_torch(GenAiBackend(folder, threads=1), model, TOKENS)


def test_greedy_tokens_are_torchs(exported: tuple[Path, Any], greedy: ModuleType) -> None:
    folder, model = exported
    generated = GenAiBackend(folder, threads=1).generate(TOKENS, 24)
    assert len(generated) == 24
    greedy.check_greedy(model, TOKENS.tolist(), generated)


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks the refusal on a machine without a GPU")
def test_cuda_is_checked_not_assumed(exported: tuple[Path, Any]) -> None:
    with pytest.raises(ResourceError, match="CUDA was asked for"):
        GenAiBackend(exported[0], threads=1, provider="cuda")


@pytest.mark.parametrize("missing", ["model.onnx", "model.onnx.data", "genai_config.json"])
def test_damaged_folder_is_one_line(exported: tuple[Path, Any], tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(exported[0], folder)
    (folder / missing).unlink()
    with pytest.raises(InputError, match=str(tmp_path)) as error:
        GenAiBackend(folder, threads=1)
    assert "\n" not in str(error.value)


def test_footprint_of_a_long_prompt(onnx_export: Callable[[str], tuple[Path, Any]]) -> None:
    """Its process must not end by a signal, as it does on 256 tokens of padding, which token 0 is here."""
    folder, _ = onnx_export("llama")
    found = measure_footprint(folder, "onnxruntime-genai", threads=1, context=512, prompt_tokens=256)
    assert found.peak_bytes > found.start_bytes > 0
