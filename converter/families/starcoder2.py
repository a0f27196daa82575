"""StarCoder 2, exported but not compressed: layer norms, biases, a plain MLP, a sliding window."""

from __future__ import annotations

from .family import Family, Setting
from .parts import BASE, PLACES

FAMILY = Family(
    "starcoder2",
    *PLACES,
    settings={
        **BASE,
        "hidden_act": Setting(),
        "norm_epsilon": Setting(),
        "use_bias": Setting(),
        "sliding_window": Setting(),
    },
    defaults={"tie_word_embeddings": True, "num_key_value_heads": 2},
)
