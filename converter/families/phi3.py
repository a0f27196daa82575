"""Phi-3 and Phi-4 mini: q, k and v in one linear, gate and up in another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import InputError
from .family import Family, Gguf, Onnx, Setting, Value
from .parts import GATED_SETTINGS, GGUF_OUTSIDE, PLACES, TWO_NORMS, input_groups, window_everywhere


def _gguf_keys(config: Mapping[str, Any]) -> Mapping[str, Value]:
    """None; llama.cpp takes heads of equal parts of the width for granted."""
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    if heads * int(config.get("head_dim") or hidden // heads) != hidden:
        raise InputError(f"config.json says head_dim: {config.get('head_dim')}, which GGUF export does not carry")
    return {}


FAMILY = Family(
    "phi3",
    *PLACES,
    groups=input_groups(("self_attn.qkv_proj",), ("self_attn.o_proj",), ("mlp.gate_up_proj",), ("mlp.down_proj",)),
    compressed=True,
    norms=TWO_NORMS,
    gguf=Gguf(
        "phi3",
        {
            "self_attn.qkv_proj": "attn_qkv",
            "self_attn.o_proj": "attn_output",
            "mlp.gate_up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "ffn_norm",
        },
        GGUF_OUTSIDE,
        fused_gate=True,
        partial_rotary=True,
        long_rotary=True,
        keys=_gguf_keys,
        factored=True,
    ),
    onnx=Onnx("Phi3MiniModel", adapt=window_everywhere),
    settings={
        **GATED_SETTINGS,
        "sliding_window": Setting(),
        "partial_rotary_factor": Setting(),
        "original_max_position_embeddings": Setting(),
    },
    defaults={"max_position_embeddings": 4096},
)
