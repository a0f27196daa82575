"""The numpy side of the proof, against sums that are slow and obvious. That llama.cpp agrees is the proof itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowrank_export.converter.core.errors import ResourceError
from lowrank_export.exporters.llamacpp import proof_logits, proof_models
from lowrank_export.exporters.llamacpp.proof_logits import exactly, logits, rounding_of
from lowrank_export.exporters.llamacpp.proof_models import (
    LAYOUTS,
    SHAPES,
    TYPES,
    Model,
    Stored,
    make_model,
    prompt,
)


def merged(model: Model) -> Model:
    """The dense model of the same products."""
    weights = {name: weight for name, weight in model.weights.items() if not name.startswith("blk")}
    for linear, shape in SHAPES.items():
        parts = {
            name.rpartition("lowrank_")[2][0]: w.values for name, w in model.weights.items() if f".{linear}." in name
        }
        if "u" in parts:
            whole = parts["u"] @ parts["v"]
        elif "p" in parts:
            whole = np.concatenate([parts["p"], parts["c"] @ parts["p"]])
            whole = whole[model.orders.get(f"blk.0.{linear}.lowrank_perm", slice(None))]
        else:
            whole = model.weights[f"blk.0.{linear}.weight"].values
        assert whole.shape == shape
        weights[f"blk.0.{linear}.weight"] = Stored(whole, whole)
    return Model(model.kind, "dense", weights, {})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_factors_are_their_product(layout: str) -> None:
    model = make_model("f32", layout)
    found, expected = (logits(one, prompt(20), activations=exactly) for one in (model, merged(model)))
    assert np.abs(found - expected).max() < 1e-9 < np.abs(expected).max()


def test_a_shorter_prompt_is_the_beginning_of_a_longer_one() -> None:
    model = make_model("q8_0", "factored")
    assert np.allclose(logits(model, prompt(5), activations=exactly), logits(model, prompt(9), activations=exactly)[:5])


def test_a_dense_model_as_transformers_computes_it() -> None:
    """The pairs of the rotary embedding are neighbors here and half a head apart there: rows of q and k move."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = make_model("f32", "dense")
    config = LlamaConfig(
        vocab_size=proof_models.VOCABULARY,
        hidden_size=proof_models.WIDTH,
        intermediate_size=proof_models.INNER,
        num_hidden_layers=1,
        num_attention_heads=proof_models.HEADS,
        num_key_value_heads=proof_models.KEY_HEADS,
        rms_norm_eps=proof_models.EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": proof_models.ROPE_BASE},
        tie_word_embeddings=False,
    )
    other = LlamaForCausalLM(config).double().eval()
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
    names |= {"attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj"}
    names |= {"ffn_down": "mlp.down_proj"}
    state = {name: torch.ones(proof_models.WIDTH) for name, _ in other.named_parameters() if "norm" in name}
    state["model.embed_tokens.weight"] = torch.tensor(model.weights["token_embd.weight"].values)
    state["lm_head.weight"] = torch.tensor(model.weights["output.weight"].values)
    for linear, name in names.items():
        values = torch.tensor(model.weights[f"blk.0.{linear}.weight"].values)
        if linear in ("attn_q", "attn_k"):
            heads = values.reshape(-1, proof_models.HEAD // 2, 2, proof_models.WIDTH)
            values = heads.transpose(1, 2).reshape(values.shape)
        state[f"model.layers.0.{name}.weight"] = values
    other.load_state_dict(state)
    with torch.no_grad():
        expected = other(torch.tensor(prompt(33)[None].astype(np.int64))).logits[0].numpy()
    assert np.allclose(logits(model, prompt(33), activations=exactly), expected, atol=1e-5)


@pytest.mark.parametrize("kind", TYPES)
def test_weights_are_of_the_size_that_keeps_activations_at_1(kind: str) -> None:
    for layout in LAYOUTS:
        for weight in make_model(kind, layout).weights.values():
            assert 0.8 < weight.values.std() * weight.values.shape[1] ** 0.5 < 1.25
            assert abs(weight.values.mean()) < 0.01


@pytest.mark.parametrize(("kind", "step"), [("f16", 2.0**-10), ("bf16", 2.0**-7), ("q8_0", 1 / 127), ("q4_k", 1 / 127)])
def test_roundings(kind: str, step: float) -> None:
    values = np.random.default_rng(0).standard_normal((3, 512))
    rounded = rounding_of(kind)(values)
    size = np.abs(values) if kind.endswith("16") else np.abs(values).max()
    assert np.abs(rounded - values).max() > 0 and (np.abs(rounded - values) <= step * size / 2 * 1.01).all()
    assert np.allclose(rounding_of(kind)(rounded), rounded, rtol=1e-12)
    assert (rounding_of(kind)(np.zeros((1, 256))) == 0).all()


def test_bfloat16_is_torchs() -> None:
    values = np.random.default_rng(1).standard_normal((2, 999))
    expected = torch.tensor(values, dtype=torch.float32).bfloat16().double().numpy()
    assert (rounding_of("bf16")(values) == expected).all()


def test_a_blas_that_is_wrong_blames_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    proof_logits.check_numpy()
    monkeypatch.setattr(proof_logits.np, "einsum", lambda *_: np.zeros((proof_models.CONTEXT, proof_models.VOCABULARY)))
    with pytest.raises(ResourceError, match="numpy computes wrong matrix products"):
        proof_logits.check_numpy()
