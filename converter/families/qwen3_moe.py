"""Qwen3's mixtures of experts: Qwen3 with experts in place of every MLP."""

from __future__ import annotations

from .family import Experts, Family, Setting
from .parts import (
    ATTENTION_BIAS,
    ATTENTION_GROUPS,
    GATED_SETTINGS,
    GGUF_QUERY_KEY_NORMS,
    PLACES,
    QUERY_KEY_NORMS,
    QWEN_WINDOWS,
    TWO_NORMS,
    expert_gguf,
)

EXPERTS = Experts("mlp.experts", "mlp.gate", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size")

FAMILY = Family(
    "qwen3_moe",
    *PLACES,
    groups=ATTENTION_GROUPS,
    experts=EXPERTS,
    compressed=True,
    norms=(*TWO_NORMS, *QUERY_KEY_NORMS, EXPERTS.router),
    biases=ATTENTION_BIAS,
    gguf=expert_gguf("qwen3moe", EXPERTS, more=GGUF_QUERY_KEY_NORMS),
    settings={
        **GATED_SETTINGS,
        **QWEN_WINDOWS,
        "num_local_experts": Setting(),
        "num_experts_per_tok": Setting(),
        "moe_intermediate_size": Setting(),
        "attention_bias": Setting(gguf=(False,)),
        "norm_topk_prob": Setting(gguf=(True,)),
        "decoder_sparse_step": Setting(torch=(1,)),
        "mlp_only_layers": Setting(torch=([],)),
    },
    aliases={"num_experts": "num_local_experts"},
    defaults={
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 768,
        "num_local_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
    },
    tiny={"num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "norm_topk_prob": True},
)
