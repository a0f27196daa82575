"""GPT-NeoX and Pythia, exported but not compressed: fused q, k and v, head by head, and a partial rotary embedding."""

from __future__ import annotations

from .family import Family, Setting
from .parts import BASE

FAMILY = Family(
    "gpt_neox",
    blocks="gpt_neox.layers",
    embedding="gpt_neox.embed_in",
    rotary="gpt_neox.rotary_emb",
    norm="gpt_neox.final_layer_norm",
    head="lm_head",
    settings={
        **BASE,
        "hidden_act": Setting(),
        "layer_norm_eps": Setting(),
        "use_parallel_residual": Setting(),
        "rotary_pct": Setting(),
        "rotary_emb_base": Setting(),
        "attention_bias": Setting(),
    },
)
