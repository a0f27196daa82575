"""StableLM, exported but not compressed: layer norms, a partial rotary embedding."""

from __future__ import annotations

from .family import Family, Setting
from .parts import BASE, PLACES

FAMILY = Family(
    "stablelm",
    *PLACES,
    settings={
        **BASE,
        "hidden_act": Setting(),
        "layer_norm_eps": Setting(),
        "use_qkv_bias": Setting(),
        "qk_layernorm": Setting(),
        "use_parallel_residual": Setting(),
        "rope_pct": Setting(),
    },
)
