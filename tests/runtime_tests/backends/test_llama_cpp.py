"""The patched llama.cpp against torch, on factored and ordinary files of every family."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.activations import GELUTanh

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.families.table import gguf_families
from lowrank_export.exporters.export import export
from lowrank_export.exporters.registry import requested
from lowrank_export.runtime_tests.backends.llama_cpp import LlamaCppBackend

FAMILIES = tuple(gguf_families())
TIED = {name: family.settings["tie_word_embeddings"].gguf for name, family in gguf_families().items()}
HEADS = [(name, tied) for name in FAMILIES for tied in (True, False) if tied in (TIED[name] or (True, False))]
TOKENS = np.random.default_rng(0).integers(0, 320, 96).astype(np.int32)

pytestmark = pytest.mark.usefixtures("llama_cpp_runtime")


class TableGelu(torch.nn.Module):
    """As ggml computes it on the CPU: looked up for a number of 16 bits, and given in 16 bits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, y))


def torch_logits(model: Any, tokens: np.ndarray = TOKENS) -> np.ndarray:
    for name, module in list(model.named_modules()):
        if isinstance(module, GELUTanh):
            model.set_submodule(name, TableGelu())
    with torch.no_grad():
        return model(torch.tensor(tokens[None].astype(np.int64))).logits[0].float().numpy()


def divergence(reference: np.ndarray, logits: np.ndarray) -> float:
    """Mean KL divergence in nats."""
    p, q = (torch.log_softmax(torch.tensor(x).double(), -1) for x in (reference, logits))
    return float((p.exp() * (p - q)).sum(-1).mean())


def assert_equal(model: Any, logits: np.ndarray, reference: np.ndarray) -> None:
    """Up to the arithmetic: sums in another order, which now and then take a neighbor from the table of gelu."""
    looked_up = any(isinstance(module, TableGelu) for module in model.modules())
    assert divergence(reference, logits) < (3e-8 if looked_up else 1e-9)
    np.testing.assert_allclose(logits, reference, atol=5e-3 if looked_up else 1e-4)


def gguf(source: Path, out: Path, quantization: str = "f16", **options: Any) -> Path:
    return export(source, out, requested("gguf", quantization, **options)).path


def logits_of(path: Path, tokens: np.ndarray = TOKENS, **options: Any) -> np.ndarray:
    backend = LlamaCppBackend(path, n_ctx=256, **options)
    try:
        return backend.window_logits(tokens)
    finally:
        backend.close()


@pytest.fixture(scope="module")
def low_rank(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A factored llama at rank 32 in float32, and its logits in torch."""
    folder = tmp_path_factory.mktemp("low-rank")
    model = tiny.save_factored(folder / "model", "llama", rank=32)
    return gguf(folder / "model", folder / "m.gguf", quantization="f32"), torch_logits(model)


@pytest.fixture
def backend(low_rank: tuple[Path, np.ndarray]) -> Iterator[LlamaCppBackend]:
    opened = LlamaCppBackend(low_rank[0], n_ctx=128)
    yield opened
    opened.close()


@pytest.mark.parametrize(("family", "tied"), HEADS)
@pytest.mark.parametrize("rank", [None, 20])
def test_factored_file_equals_torch(
    tiny: ModuleType, tmp_path: Path, family: str, tied: bool, rank: int | None
) -> None:
    model = tiny.save_factored(tmp_path / "model", family, rank=rank, tied=tied)
    reference = torch_logits(model)
    native = logits_of(gguf(tmp_path / "model", tmp_path / "native.gguf", quantization="f32"))
    dense = logits_of(gguf(tmp_path / "model", tmp_path / "dense.gguf", quantization="f32", layout="dense"))
    assert_equal(model, native, reference)
    assert_equal(model, dense, reference)


@pytest.mark.parametrize("family", [name for name, found in gguf_families().items() if found.experts is None])
@pytest.mark.parametrize("rank", [20, 31])
def test_pivot_file_equals_torch(tiny: ModuleType, tmp_path: Path, family: str, rank: int) -> None:
    options = {"attention_bias": True, "mlp_bias": True} if family == "llama" else {}
    model = tiny.save_factored(tmp_path / "model", family, rank=rank, layout="pivot", **options)
    reference = torch_logits(model)
    native = gguf(tmp_path / "model", tmp_path / "native.gguf", quantization="f32")
    dense = logits_of(gguf(tmp_path / "model", tmp_path / "dense.gguf", quantization="f32", layout="dense"))
    assert_equal(model, logits_of(native), reference)
    assert_equal(model, dense, reference)
    opened = LlamaCppBackend(native, n_ctx=128)
    assert_equal(model, opened.feed(TOKENS[:40])[None], reference[39:40])
    assert_equal(model, opened.feed(TOKENS[40:41])[None], reference[40:41])  # one token takes its own path
    opened.close()


def test_pivot_rows_that_are_in_order_in_the_checkpoint(tiny: ModuleType, tmp_path: Path) -> None:
    """Where llama.cpp reorders the rows of q and k, a permutation appears that the checkpoint did not need."""
    model = tiny.save_factored(tmp_path / "model", "llama", rank=20, layout="pivot")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    for block in model.model.layers:
        for projection in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
            projection.lowrank_perm = None
    orders = [name for name in weights if name.endswith("lowrank_perm") and name.split(".")[-2] in ("q_proj", "k_proj")]
    orders += [name for name in weights if name.endswith("v_proj.lowrank_perm")]
    assert len(orders) == 6
    kept = {name: tensor for name, tensor in weights.items() if name not in orders}
    save_file(kept, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    path = gguf(tmp_path / "model", tmp_path / "m.gguf", quantization="f32")
    assert divergence(torch_logits(model), logits_of(path)) < 1e-9


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_checkpoint_equals_torch(tiny: ModuleType, tmp_path: Path, family: str) -> None:
    model = tiny.save_dense(tmp_path / "model", family)
    logits = logits_of(gguf(tmp_path / "model", tmp_path / "m.gguf", quantization="f32"))
    assert_equal(model, logits, torch_logits(model))


PARTS = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama: biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "granite: biases": ("granite", {"attention_bias": True, "mlp_bias": True}),
    "smollm3: a block without rotary embedding": ("smollm3", {"blocks": 4}),
    "phi3: half of each head rotated": ("phi3", {"rope_parameters": PARTS}),
    "phi3: longrope": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 64}),
    "phi3: longrope, short texts": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 256}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_configuration_may_say(tiny: ModuleType, tmp_path: Path, case: str) -> None:
    family, options = CASES[case]
    model = tiny.save_factored(tmp_path / "model", family, rank=20, **options)
    logits = logits_of(gguf(tmp_path / "model", tmp_path / "m.gguf", quantization="f32"))
    assert divergence(torch_logits(model), logits) < 1e-9


def test_llama3_rope(tiny: ModuleType, tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    model = tiny.save_factored(tmp_path / "model", "llama", rope_parameters=rope)
    logits = logits_of(gguf(tmp_path / "model", tmp_path / "m.gguf", quantization="f32"))
    assert divergence(torch_logits(model), logits) < 1e-8


@pytest.mark.parametrize("layout", ["two-factor", "pivot"])
@pytest.mark.parametrize(("quantization", "limit"), [("f16", 1e-5), ("bf16", 1e-3), ("q8_0", 1e-2)])
def test_quantized_factors(tiny: ModuleType, tmp_path: Path, quantization: str, limit: float, layout: str) -> None:
    rank, options = (32, {}) if layout == "two-factor" else (32, {"num_key_value_heads": 4})
    model = tiny.save_factored(tmp_path / "model", "qwen2", rank=rank, layout=layout, **options)
    logits = logits_of(gguf(tmp_path / "model", tmp_path / "m.gguf", quantization=quantization))
    assert divergence(torch_logits(model), logits) < limit


def test_factored_head(tiny: ModuleType, tmp_path: Path) -> None:
    """`output.weight` as two factors: built by hand, because the converter leaves the head alone."""
    source = tmp_path / "model"
    model = tiny.save_dense(source, "llama", tied=False)
    u, s, vt = torch.linalg.svd(model.lm_head.weight.detach(), full_matrices=False)
    u, v = u[:, :32] * s[:32], vt[:32]
    weights = load_file(source / "model.safetensors")
    del weights["lm_head.weight"]
    weights |= {"lm_head.lowrank_u.weight": u.contiguous(), "lm_head.lowrank_v.weight": v.contiguous()}
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "lowrank", "layout": "two-factor", "ranks": {"lm_head": 32}}
    (source / "config.json").write_text(json.dumps(config))
    with torch.no_grad():
        model.lm_head.weight.copy_(u @ v)
    logits = logits_of(gguf(source, tmp_path / "m.gguf", quantization="f32"))
    assert divergence(torch_logits(model), logits) < 1e-9


def test_feeding_equals_the_window(backend: LlamaCppBackend, low_rank: tuple[Path, np.ndarray]) -> None:
    reference = low_rank[1]
    for _ in range(2):
        backend.reset()
        np.testing.assert_allclose(backend.feed(TOKENS[:40]), reference[39], atol=1e-4)
        np.testing.assert_allclose(backend.feed(TOKENS[40:41]), reference[40], atol=1e-4)
        np.testing.assert_allclose(backend.feed(TOKENS[41:60]), reference[59], atol=1e-4)
    np.testing.assert_allclose(backend.window_logits(TOKENS), reference, atol=1e-4)


def test_sequences_at_once(backend: LlamaCppBackend, low_rank: tuple[Path, np.ndarray]) -> None:
    """In the context of one; what a sequence computes does not depend on the others."""
    rows = np.stack([TOKENS[:24], TOKENS[24:48], TOKENS[48:72], TOKENS[72:]])
    assert backend.at_once(24) == 5 and backend.at_once(3) == 16 and backend.at_once(500) == 1
    alone = np.stack([backend.window_logits(row)[-1] for row in rows])
    for _ in range(2):
        backend.reset()
        for part in (rows[:, :20], rows[:, 20:21], rows[:, 21:]):
            found = backend.feed_all(part)
        assert divergence(alone, found) < 1e-9
    with pytest.raises(InputError, match="the context holds 128"):
        backend.feed_all(rows[:, :9])


def test_window_longer_than_one_batch(tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.save_factored(tmp_path / "model", "qwen3", max_position_embeddings=1024)
    tokens = np.random.default_rng(1).integers(0, 320, 700).astype(np.int32)
    opened = LlamaCppBackend(gguf(tmp_path / "model", tmp_path / "m.gguf", quantization="f32"), n_ctx=700)
    logits = opened.window_logits(tokens)
    opened.close()
    assert divergence(torch_logits(model, tokens), logits) < 1e-9


def test_misuse_is_an_error_not_a_crash(backend: LlamaCppBackend) -> None:
    with pytest.raises(InputError, match="the context holds"):
        backend.window_logits(np.zeros(300, dtype=np.int32))
    backend.reset()
    with pytest.raises(InputError, match="outside the vocabulary of 320"):
        backend.feed(np.array([320], dtype=np.int32))
    with pytest.raises(InputError, match="no tokens"):
        backend.feed(np.array([], dtype=np.int32))


def test_runtime_defaults_are_close(low_rank: tuple[Path, np.ndarray]) -> None:
    assert divergence(low_rank[1], logits_of(low_rank[0], exact=False)) < 1e-4


def test_close_twice(low_rank: tuple[Path, np.ndarray]) -> None:
    opened = LlamaCppBackend(low_rank[0])
    opened.close()
    opened.close()
