"""Gemma 2: soft caps, norms behind linears, windows in every other block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import InputError
from .family import Family, Gguf, Onnx, Setting, Value
from .parts import (
    ATTENTION_BIAS,
    BASE,
    CAUSAL,
    GATED,
    GATED_ORDER,
    GELU,
    GGUF_BLOCK,
    GGUF_OUTSIDE,
    GGUF_POST_NORMS,
    PLACES,
    TIED,
    TWO_NORMS,
    WINDOWS,
    root_of_width,
    sliding_blocks,
)

LARGEST = 46  # blocks of the 27B model, by which llama.cpp knows it
CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}  # where config.json is silent
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
    if not window:
        return {}
    return {"attention.sliding_window": int(window), "attention.sliding_window_pattern": sliding}


def _gguf_keys(config: Mapping[str, Any]) -> Mapping[str, Value]:
    """Windows and soft caps; llama.cpp has caps of its own where the file has none."""
    score_scale(config, LARGEST)
    caps = {key: config.get(key, cap) for key, cap in CAPS.items()}
    for key, cap in caps.items():
        if not cap:
            raise InputError(f"config.json says {key}: {cap}, which GGUF export does not carry")
    return {**windows(config, 2), **{key: float(cap) for key, cap in caps.items()}}


DEFAULTS = {
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}

FAMILY = Family(
    "gemma2",
    *PLACES,
    groups=GATED,
    shared_orders=GATED_ORDER,
    compressed=True,
    norms=(*TWO_NORMS, *MORE_NORMS),
    biases=ATTENTION_BIAS,
    embedding_scale=root_of_width,
    gguf=Gguf(
        "gemma2",
        {**GGUF_BLOCK, **GGUF_POST_NORMS},
        GGUF_OUTSIDE,
        windows=True,
        norm_shift=1.0,
        keys=_gguf_keys,
        factored=True,
    ),
    onnx=Onnx("Gemma2Model"),
    settings={**SETTINGS, **TIED},
    defaults=DEFAULTS,
    tiny={
        "query_pre_attn_scalar": 16,
        "sliding_window": 20,
        "layer_types": ["sliding_attention", "full_attention"],
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
)
