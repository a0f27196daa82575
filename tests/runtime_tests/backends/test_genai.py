"""ONNX Runtime GenAI behind the protocol."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_export.converter.errors import InputError, ResourceError
from lowrank_export.converter.progress import SilentProgress
from lowrank_export.exporters.onnx.export import export_onnx
from lowrank_export.runtime_tests.backends.genai import GenAiBackend
from lowrank_export.runtime_tests.backends.protocol import Backend

TOKENS = np.random.default_rng(4).integers(1, 320, 30, dtype=np.int32)


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Any:
    folder = tmp_path_factory.mktemp("exported")
    model = tiny.save_factored(folder / "in", request.param, rank=40)
    export_onnx(folder / "in", folder / "out", progress=SilentProgress())
    return folder / "out", model


def test_window_and_feed_agree_with_torch(exported: tuple[Path, Any]) -> None:
    folder, model = exported
    with torch.no_grad():
        reference = model(torch.from_numpy(TOKENS.astype(np.int64))[None]).logits[0].numpy()
    backend: Backend = GenAiBackend(folder, threads=1)
    np.testing.assert_allclose(backend.window_logits(TOKENS), reference, atol=1e-4)
    for _ in range(2):
        np.testing.assert_allclose(backend.feed(TOKENS[:12]), reference[11], atol=1e-4)
        backend.window_logits(TOKENS[::-1])
        np.testing.assert_allclose(backend.feed(TOKENS[12:13]), reference[12], atol=1e-4)
        np.testing.assert_allclose(backend.feed(TOKENS[13:]), reference[-1], atol=1e-4)
        backend.reset()
    backend.close()
    with pytest.raises(RuntimeError, match="closed"):
        backend.window_logits(TOKENS)


def test_greedy_tokens_are_torchs(exported: tuple[Path, Any]) -> None:
    folder, model = exported
    with torch.no_grad():
        prompt = torch.from_numpy(TOKENS.astype(np.int64))[None]
        expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False)
    generated = GenAiBackend(folder, threads=1).generate(TOKENS, 24)
    assert generated == expected[0, len(TOKENS) :].tolist()


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
