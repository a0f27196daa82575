"""The layouts that need no patch, in a llama.cpp without it: the same probabilities as torch and as the patched one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_export.converter.core.errors import InputError
from lowrank_export.exporters.export import export
from lowrank_export.exporters.gguf.adapter_files import adapter_path
from lowrank_export.exporters.gguf.mixes import MIXES
from lowrank_export.exporters.gguf.types import TYPES
from lowrank_export.exporters.registry import requested
from lowrank_export.runtime_tests.backends.llama_cpp import LlamaCppBackend

WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_key_value_heads": 4}
VOCABULARY, LENGTHS = 320, (1, 9, 48)
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, 48).astype(np.int32)

pytestmark = pytest.mark.usefixtures("llama_cpp_runtime")


def normal(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities at the ends of the prefixes."""
    return torch.log_softmax(torch.tensor(logits).double(), -1).numpy()[[length - 1 for length in LENGTHS]]


def torch_rows(model: Any) -> np.ndarray:
    with torch.no_grad():
        return normal(model(torch.tensor(TOKENS[None].astype(np.int64))).logits[0].float().numpy())


def patched_rows(path: Path) -> np.ndarray:
    backend = LlamaCppBackend(path, n_ctx=64)
    try:
        return normal(backend.window_logits(TOKENS))
    finally:
        backend.close()


def stock_rows(stock: ModuleType, files: Sequence[tuple[Path, Path | None]]) -> np.ndarray:
    found: np.ndarray = stock.log_probabilities(files, TOKENS, LENGTHS, VOCABULARY)
    assert found.shape == (len(files), len(LENGTHS), VOCABULARY) and np.isfinite(found).all()
    return found


def divergence(reference: np.ndarray, found: np.ndarray) -> float:
    """Mean KL divergence in nats."""
    return float((np.exp(reference) * (reference - found)).sum(-1).mean())


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def models(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """Folder of the dense model and of its factors, and what both compute."""
    folder = tmp_path_factory.mktemp("stock")
    dense = tiny.save_dense(folder / "dense", request.param, **WIDE)
    factored = tiny.save_factored(folder / "factored", request.param, rank=64, **WIDE)
    return folder, torch_rows(dense), torch_rows(factored)


def make(folder: Path, out: Path, quantization: str = "q8_0", **options: Any) -> Path:
    return export(folder / "factored", out, requested("gguf", quantization, **options)).path


def test_dense_layout_in_every_type(stock: ModuleType, models: Any, tmp_path: Path) -> None:
    folder, _, factored = models
    names = [name for name, mix in MIXES.items() if not TYPES[mix.base].importance]
    files = {name: make(folder, tmp_path / f"{name}.gguf", quantization=name, layout="dense") for name in names}
    found = dict(zip(files, stock_rows(stock, [(path, None) for path in files.values()]), strict=True))
    np.testing.assert_allclose(found["f32"], factored, atol=1e-4)
    for name, path in files.items():
        # Two builds sum in another order, and what multiplies K-quants rounds activations to 8 bits
        assert divergence(patched_rows(path), found[name]) < 1e-3, name


@pytest.mark.parametrize("quantization", ["f32", "f16", "q8_0", "q4_k_m"])
def test_adapter_without_residual_computes_the_factored_model(
    stock: ModuleType, models: Any, tmp_path: Path, quantization: str
) -> None:
    folder, dense, factored = models
    base = make(folder, tmp_path / "m.gguf", quantization=quantization, layout="adapter")
    (found,) = stock_rows(stock, [(base, adapter_path(base))])
    native = patched_rows(make(folder, tmp_path / "n.gguf", quantization=quantization))
    assert divergence(patched_rows(base), found) < 1e-3
    assert divergence(native, found) < 2e-3
    assert divergence(factored, found) < {"f32": 1e-6, "f16": 1e-5, "q8_0": 2e-3, "q4_k_m": 0.1}[quantization]
    assert divergence(factored, dense) > 0.2  # what has been told apart


def test_adapter_with_residual_computes_the_dense_model(stock: ModuleType, models: Any, tmp_path: Path) -> None:
    folder, dense, _ = models
    # Multiplying factors in q8_0 rounds activations to 8 bits, which no residual makes up for
    limits = {"f32": 5e-4, "q8_0": 1e-3, "q4_0": 0.15, "q2_k": 0.6}
    files = {
        residual: make(
            folder,
            tmp_path / f"{residual}.gguf",
            quantization="q8_0",
            head_type="f32",
            layout="adapter",
            dense=str(folder / "dense"),
            residual=residual,
        )
        for residual in limits
    }
    rows = stock_rows(stock, [(path, adapter_path(path)) for path in files.values()])
    for (residual, path), found in zip(files.items(), rows, strict=True):
        assert divergence(dense, found) < limits[residual], residual
        assert divergence(patched_rows(path), found) < 2e-3, residual
    (alone,) = stock_rows(stock, [(files["q4_0"], None)])
    assert divergence(dense, alone) > 0.5  # the base is no model


def test_adapter_is_not_opened_for_its_base(models: Any, tmp_path: Path) -> None:
    base = make(models[0], tmp_path / "m.gguf", layout="adapter")
    with pytest.raises(InputError, match="is a LoRA adapter; give the base file"):
        LlamaCppBackend(adapter_path(base))
    adapter_path(base).unlink()
    with pytest.raises(InputError, match=r"its adapter m\.lora\.gguf is not beside it"):
        LlamaCppBackend(base)
