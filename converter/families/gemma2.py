"""Gemma 2, exported but not compressed: soft caps, norms behind linears, windows in every other block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import InputError
from .family import Family, Onnx, Setting, Value
from .parts import ATTENTION_BIAS, BASE, CAUSAL, GATED, GELU, PLACES, TWO_NORMS, WINDOWS, sliding_blocks

MORE_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
SETTINGS = {
    **BASE,
    **CAUSAL,
    **WINDOWS,
    **GELU,
    "hidden_act": Setting(),  # Gemma 1's; nobody reads it here
    "rms_norm_eps": Setting(),
    "attention_bias": Setting(gguf=(False,)),
    "query_pre_attn_scalar": Setting(),
    "attn_logit_softcapping": Setting(),
    "final_logit_softcapping": Setting(),
}


def score_scale(config: Mapping[str, Any], largest: int) -> None:
    """llama.cpp divides scores by the root of a head's size, and knows the largest model by its blocks.

    Raises:
        InputError: the model divides by another number.
    """
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    head = hidden // heads if config["num_hidden_layers"] == largest else int(config.get("head_dim") or 256)
    said = config.get("query_pre_attn_scalar") or 256
    if said != head:
        raise InputError(f"config.json says query_pre_attn_scalar: {said}, where llama.cpp takes {head} for granted")


def windows(config: Mapping[str, Any], period: int) -> Mapping[str, Value]:
    """The sliding window and the blocks that have it, of which all but every `period`-th are, as GGUF keys."""
    sliding, window = sliding_blocks(config, period), config.get("sliding_window")
    if not window or not any(sliding):
        return {}
    return {"attention.sliding_window": int(window), "attention.sliding_window_pattern": sliding}


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
