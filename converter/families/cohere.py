"""Cohere's Command R, exported but not compressed: attention and MLP side by side, scaled logits."""

from __future__ import annotations

from .family import Family, Setting
from .parts import BASE, PLACES

FAMILY = Family(
    "cohere",
    *PLACES,
    settings={
        **BASE,
        "hidden_act": Setting(),
        "layer_norm_eps": Setting(),
        "logit_scale": Setting(),
        "attention_bias": Setting(),
        "use_qk_norm": Setting(),
    },
    defaults={"tie_word_embeddings": True},
)
