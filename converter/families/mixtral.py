"""Mixtral: Mistral's shape with experts in place of every MLP."""

from __future__ import annotations

from .family import Experts, Family, Setting
from .parts import ATTENTION_GROUPS, GATED_SETTINGS, PLACES, TWO_NORMS, expert_gguf

EXPERTS = Experts(
    "mlp.experts", "mlp.gate", "num_local_experts", "num_experts_per_tok", "intermediate_size", "w1", "w3", "w2"
)

FAMILY = Family(
    "mixtral",
    *PLACES,
    groups=ATTENTION_GROUPS,
    experts=EXPERTS,
    compressed=True,
    norms=(*TWO_NORMS, EXPERTS.router),
    stored_names={".block_sparse_moe.": ".mlp."},
    gguf=expert_gguf("llama", EXPERTS, interleaved=True, rope_base=1e6),
    settings={
        **GATED_SETTINGS,
        "num_local_experts": Setting(),
        "num_experts_per_tok": Setting(),
        "sliding_window": Setting(),
        "router_jitter_noise": Setting(),  # in training alone
    },
    aliases={"num_experts": "num_local_experts"},
    defaults={
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    tiny={"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 96},
)
