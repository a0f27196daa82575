"""OLMoE: experts in place of every MLP, and norms of all queries and all keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..core.errors import InputError
from .family import Experts, Family, Setting, Value
from .parts import (
    ATTENTION_BIAS,
    ATTENTION_GROUPS,
    GATED_SETTINGS,
    GGUF_QUERY_KEY_NORMS,
    PLACES,
    QUERY_KEY_NORMS,
    TWO_NORMS,
    expert_gguf,
)

EXPERTS = Experts("mlp.experts", "mlp.gate", "num_experts", "num_experts_per_tok", "intermediate_size")


def _keys(config: Mapping[str, Any]) -> Mapping[str, Value]:
    """llama.cpp takes it for granted that every head has keys and values of its own, as OLMoE's have."""
    heads = config["num_attention_heads"]
    if (config.get("num_key_value_heads") or heads) != heads:
        raise InputError("num_key_value_heads: heads of an olmoe model share no keys in a GGUF file")
    return EXPERTS.gguf_keys(config)


FAMILY = Family(
    "olmoe",
    *PLACES,
    groups=ATTENTION_GROUPS,
    experts=EXPERTS,
    compressed=True,
    norms=(*TWO_NORMS, *QUERY_KEY_NORMS, EXPERTS.router),
    biases=ATTENTION_BIAS,
    gguf=replace(expert_gguf("olmoe", EXPERTS, wide_norms=True, more=GGUF_QUERY_KEY_NORMS), keys=_keys),
    settings={
        **GATED_SETTINGS,
        "num_experts": Setting(),
        "num_experts_per_tok": Setting(),
        "attention_bias": Setting(gguf=(False,)),
        "clip_qkv": Setting(gguf=()),
        "norm_topk_prob": Setting(gguf=(False,)),
        "tie_word_embeddings": Setting(gguf=(False,)),
    },
    aliases={"num_local_experts": "num_experts"},
    defaults={
        "max_position_embeddings": 4096,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
    },
    tiny={
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 96,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
)
