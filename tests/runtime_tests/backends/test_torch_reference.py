"""The reference backend gives transformers' own logits, with and without a cache, factored or dense."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from lowrank_export.converter.core.errors import InputError, UsageError
from lowrank_export.runtime_tests.backends.protocol import Backend
from lowrank_export.runtime_tests.backends.torch_reference import TorchBackend, open_torch

TOKENS = np.random.default_rng(0).integers(0, 320, 24).astype(np.int32)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_window_logits_are_the_models(tiny: ModuleType, family: str) -> None:
    model = tiny.model(family)
    with torch.inference_mode():
        expected = model(torch.from_numpy(TOKENS.astype(np.int64))[None]).logits[0].numpy()
    backend: Backend = TorchBackend(model)
    logits = backend.window_logits(TOKENS)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, expected)


def test_feeding_in_pieces_equals_the_window(tiny: ModuleType) -> None:
    backend = TorchBackend(tiny.model("qwen3"))
    expected = backend.window_logits(TOKENS)
    for _ in range(2):  # the second time after a reset
        backend.reset()
        for piece in (TOKENS[:10], TOKENS[10:11], TOKENS[11:20]):
            last = backend.feed(piece)
        backend.window_logits(TOKENS[:5])  # must not disturb the sequence
        np.testing.assert_allclose(last, expected[19], atol=1e-4)
        np.testing.assert_allclose(backend.feed(TOKENS[20:]), expected[23], atol=1e-4)


def test_full_rank_factors_equal_dense(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "dense", "llama")
    tiny.save_factored(tmp_path / "factored", "llama")
    dense, factored = open_torch(tmp_path / "dense"), open_torch(tmp_path / "factored")
    np.testing.assert_allclose(factored.window_logits(TOKENS), dense.window_logits(TOKENS), atol=1e-3)


def test_dtype_is_applied_and_logits_stay_float32(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "dense", "llama")
    logits = open_torch(tmp_path / "dense", dtype="bfloat16").window_logits(TOKENS)
    exact = open_torch(tmp_path / "dense").window_logits(TOKENS)
    assert logits.dtype == np.float32
    assert 1e-4 < np.abs(logits - exact).max() < 1.0


def test_threads_are_put_back(tiny: ModuleType) -> None:
    before = torch.get_num_threads()
    backend = TorchBackend(tiny.model("llama"), threads=1)
    assert torch.get_num_threads() == 1
    backend.close()
    backend.close()
    assert torch.get_num_threads() == before
    with pytest.raises(RuntimeError, match="closed"):
        backend.feed(TOKENS)


def test_unusable_choices_are_named(tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.model("llama")
    with pytest.raises(UsageError, match="float13"):
        TorchBackend(model, dtype="float13")
    with pytest.raises(UsageError, match="abacus"):
        TorchBackend(model, device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA device"):
            TorchBackend(model, device="cuda")
    with pytest.raises(InputError, match="no such directory"):
        open_torch(tmp_path / "nowhere")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_cpu(tiny: ModuleType) -> None:
    expected = TorchBackend(tiny.model("llama")).window_logits(TOKENS)
    backend = TorchBackend(tiny.model("llama"), device="cuda")
    np.testing.assert_allclose(backend.window_logits(TOKENS), expected, atol=1e-3)
    np.testing.assert_allclose(backend.feed(TOKENS), expected[-1], atol=1e-3)
