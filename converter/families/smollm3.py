"""SmolLM3: Llama's shape without a rotary embedding in every fourth block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import InputError
from .family import Family, Gguf, Setting, Value
from .parts import (
    ATTENTION_BIAS,
    GATED,
    GATED_ORDER,
    GATED_SETTINGS,
    GGUF_BLOCK,
    GGUF_OUTSIDE,
    MLP_BIAS,
    PLACES,
    TWO_NORMS,
    WINDOWS,
    sliding_blocks,
)

STEP = 4  # of llama.cpp: each block of that number goes without


def _gguf_keys(config: Mapping[str, Any]) -> Mapping[str, Value]:
    """None; llama.cpp takes for granted which blocks rotate, and that all attend to everything."""
    blocks = range(1, int(config["num_hidden_layers"]) + 1)
    step = int(config.get("no_rope_layer_interval") or STEP)
    rotating = config.get("no_rope_layers") or [block % step for block in blocks]
    if [bool(rotates) for rotates in rotating] != [bool(block % STEP) for block in blocks]:
        raise InputError(f"config.json says no_rope_layers: {rotating}, where llama.cpp leaves out every {STEP}th")
    if config.get("layer_types") and any(sliding_blocks(config, STEP)):
        raise InputError("config.json says layer_types: sliding_attention, which GGUF export does not carry")
    return {}


FAMILY = Family(
    "smollm3",
    *PLACES,
    groups=GATED,
    shared_orders=GATED_ORDER,
    compressed=True,
    norms=TWO_NORMS,
    biases={**ATTENTION_BIAS, **MLP_BIAS},
    gguf=Gguf("smollm3", GGUF_BLOCK, GGUF_OUTSIDE, interleaved=True, keys=_gguf_keys, factored=True),
    # GenAI's builder has a class, which fails at the first block without a rotary embedding; so it is traced
    settings={
        **GATED_SETTINGS,
        **WINDOWS,
        "use_sliding_window": Setting(gguf=(False,)),
        "no_rope_layers": Setting(),
        "no_rope_layer_interval": Setting(),
        "attention_bias": Setting(gguf=(False,)),
        "mlp_bias": Setting(gguf=(False,)),
    },
    defaults={"tie_word_embeddings": True, "max_position_embeddings": 32768, "num_key_value_heads": 4},
)
