"""Gemma 2, exported but not compressed: soft caps, norms behind linears, windows in every other block."""

from __future__ import annotations

from .family import Family, Onnx, Setting
from .parts import ATTENTION_BIAS, BASE, CAUSAL, GATED, PLACES, TWO_NORMS, WINDOWS

MORE_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
SETTINGS = {
    **BASE,
    **CAUSAL,
    **WINDOWS,
    "hidden_act": Setting(),
    "hidden_activation": Setting(),
    "rms_norm_eps": Setting(),
    "attention_bias": Setting(),
    "query_pre_attn_scalar": Setting(),
    "attn_logit_softcapping": Setting(),
    "final_logit_softcapping": Setting(),
}

FAMILY = Family(
    "gemma2",
    *PLACES,
    groups=GATED,
    norms=(*TWO_NORMS, *MORE_NORMS),
    biases=ATTENTION_BIAS,
    onnx=Onnx("Gemma2Model"),
    settings=SETTINGS,
    defaults={"tie_word_embeddings": True, "max_position_embeddings": 8192, "num_key_value_heads": 4, "head_dim": 256},
)
