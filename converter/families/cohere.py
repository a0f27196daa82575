"""Cohere's Command R: attention and MLP side by side, layer norms without a bias, scaled logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import InputError
from .family import Family, Gguf, Setting, Value
from .parts import ATTENTION_BIAS, BASE, GATED, GATED_ORDER, GGUF_BLOCK, GGUF_OUTSIDE, PLACES, QUERY_KEY_NORMS, TIED

LARGE = 64  # blocks from which on llama.cpp asks for norms of queries and keys
LOGIT_SCALE = 0.0625  # where config.json is silent


def _logit_scale(config: Any) -> float:
    return float(config.logit_scale)


def _gguf_keys(config: Mapping[str, Any]) -> Mapping[str, Value]:
    if int(config["num_hidden_layers"]) >= LARGE:
        raise InputError(f"GGUF export of this family knows models of fewer than {LARGE} blocks")
    return {"logit_scale": float(config.get("logit_scale") or LOGIT_SCALE)}


FAMILY = Family(
    "cohere",
    *PLACES,
    groups=GATED,
    shared_orders=GATED_ORDER,
    compressed=True,
    norms=("input_layernorm",),
    switched_norms=dict.fromkeys(QUERY_KEY_NORMS, "use_qk_norm"),
    biases=ATTENTION_BIAS,
    logit_scale=_logit_scale,
    # llama.cpp rotates neighboring rows here, and so does transformers
    gguf=Gguf(
        "command-r",
        {path: name for path, name in GGUF_BLOCK.items() if path != "post_attention_layernorm"},
        GGUF_OUTSIDE,
        layer_norm="layer_norm_eps",
        keys=_gguf_keys,
        factored=True,
    ),
    settings={
        **BASE,
        **TIED,
        "hidden_act": Setting(gguf=("silu",)),
        "layer_norm_eps": Setting(),
        "logit_scale": Setting(),
        "attention_bias": Setting(gguf=(False,)),
        "use_qk_norm": Setting(gguf=(False,)),
    },
    defaults={"tie_word_embeddings": True, "max_position_embeddings": 8192},
    tiny={"logit_scale": 0.5},
)
