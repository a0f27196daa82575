"""Every family, with the features of its configuration that a builder is known to get wrong in silence."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.families.table import built_onnx
from lowrank_export.exporters.onnx.check.selfcheck import kld
from lowrank_export.exporters.onnx.export import export_onnx
from lowrank_export.exporters.onnx.session import open_decoder
from lowrank_export.exporters.onnx.weights.types import OnnxOptions

ALL = OnnxOptions(factors="all")
WINDOW = 8  # of sliding attention: far shorter than the tokens below
TOKENS = np.random.default_rng(11).integers(0, 320, 150, dtype=np.int32)
GRANITE = {"embedding_multiplier": 3.0, "attention_multiplier": 0.7, "logits_scaling": 5.0, "residual_multiplier": 0.3}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
SOFTCAPS = {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 1.0, "query_pre_attn_scalar": 24}
ROTARY_PER_KIND = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 128}
HALF = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma: a scale of embeddings that is no round number": ("gemma", {"hidden_size": 80}),
    "gemma2: windows, both softcaps, a scale of its own": ("gemma2", {**ALTERNATING, **SOFTCAPS, "head_dim": 32}),
    "gemma3: windows, one rotary embedding per kind of block": (
        "gemma3_text",
        {
            **ALTERNATING,
            "rope_parameters": ROTARY_PER_KIND,
            "query_pre_attn_scalar": 24,
            "final_logit_softcapping": 3.0,
        },
    ),
    "granite: its four multipliers, biases": ("granite", {**GRANITE, "attention_bias": True, "mlp_bias": True}),
    "phi3: fused linears, windows": ("phi3", {"sliding_window": WINDOW}),
    "phi3: half of each head rotated": ("phi3", {"hidden_size": 128, "head_dim": 32, "rope_parameters": HALF}),
    "qwen2: windows in some blocks": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, **ALTERNATING}),
    "qwen3: yarn": ("qwen3", {"rope_parameters": YARN}),
    "llama: yarn": ("llama", {"rope_parameters": YARN}),
    "llama: linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "llama: heads wider than hidden / heads": ("llama", {"head_dim": 48}),
    "llama: another norm epsilon and activation": ("llama", {"rms_norm_eps": 0.1, "hidden_act": "gelu_pytorch_tanh"}),
}


def torch_logits(model: Any, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy())


@pytest.mark.parametrize("factored", [True, False], ids=["factored", "dense"])
@pytest.mark.parametrize("case", CASES)
def test_logits_agree_with_torch(tmp_path: Path, tiny: ModuleType, case: str, factored: bool) -> None:
    family, options = CASES[case]
    save = partial(tiny.save_factored, rank=37) if factored else tiny.save_dense
    model = save(tmp_path / "in", family, tied=factored, **options)
    export = partial(export_onnx, tmp_path / "in", options=ALL, progress=SilentProgress())
    export(tmp_path / "fp32")
    export(tmp_path / "int8", quantization="int8")
    reference = torch_logits(model, TOKENS)
    exact = open_decoder(tmp_path / "fp32", threads=1)
    first, cache = exact.run(TOKENS[:120], exact.empty_cache, keep_cache=True)
    last, _ = exact.run(TOKENS[120:], cache, keep_cache=False)
    np.testing.assert_allclose(np.concatenate([first, last]) / reference.std(), reference / reference.std(), atol=1e-4)
    rounded = open_decoder(tmp_path / "int8", threads=1)
    logits, _ = rounded.run(TOKENS, rounded.empty_cache, keep_cache=False)
    assert np.median(kld(reference, logits)) < 0.01


@pytest.mark.parametrize(("type", "limit"), [("fp16", 1e-5), ("int4-mix", 0.3), ("int4", 0.6)])
@pytest.mark.parametrize("case", CASES)
def test_narrow_types(tmp_path: Path, tiny: ModuleType, case: str, type: str, limit: float) -> None:
    family, options = CASES[case]
    model = tiny.save_factored(tmp_path / "in", family, rank=37, **options)
    export_onnx(tmp_path / "in", tmp_path / "out", quantization=type, options=ALL, progress=SilentProgress())
    decoder = open_decoder(tmp_path / "out", threads=1)
    logits, _ = decoder.run(TOKENS, decoder.empty_cache, keep_cache=False)
    assert np.median(kld(torch_logits(model, TOKENS), logits)) < limit


def test_every_family_has_a_case_here_or_in_test_export() -> None:
    assert {family for family, _ in CASES.values()} | {"llama", "mistral", "qwen2", "qwen3"} == set(built_onnx())


@pytest.mark.parametrize("family", ["gemma", "phi3"])
def test_pivot_layout(tmp_path: Path, tiny: ModuleType, family: str) -> None:
    options = {"hidden_size": 80, "blocks": 1}
    model = tiny.save_factored(tmp_path / "in", family, rank=27, layout="pivot", **options)
    export_onnx(tmp_path / "in", tmp_path / "out", options=ALL, progress=SilentProgress())
    decoder = open_decoder(tmp_path / "out", threads=1)
    logits, _ = decoder.run(TOKENS, decoder.empty_cache, keep_cache=False)
    np.testing.assert_allclose(logits, torch_logits(model, TOKENS), atol=1e-4)


LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 128}, "'longrope' rotary embedding"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic' rotary"),
        ("llama", {"head_dim": 24}, "heads of 24 numbers .* multiples of 16"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    tmp_path: Path, tiny: ModuleType, family: str, options: dict[str, Any], message: str
) -> None:
    tiny.save_dense(tmp_path / "in", family, blocks=1, **options)
    with pytest.raises(InputError, match=message) as error:
        export_onnx(tmp_path / "in", tmp_path / "out", progress=SilentProgress())
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
