"""Qwen3, dense: norms of queries and keys, heads whose size is said apart."""

from __future__ import annotations

from .family import Family, Onnx, Setting
from .parts import (
    ATTENTION_BIAS,
    GATED,
    GATED_ORDER,
    GATED_SETTINGS,
    GGUF_QUERY_KEY_NORMS,
    PLACES,
    QUERY_KEY_NORMS,
    QWEN_WINDOWS,
    TWO_NORMS,
    verified_gguf,
)

FAMILY = Family(
    "qwen3",
    *PLACES,
    groups=GATED,
    shared_orders=GATED_ORDER,
    compressed=True,
    norms=(*TWO_NORMS, *QUERY_KEY_NORMS),
    biases=ATTENTION_BIAS,
    gguf=verified_gguf("qwen3", more=GGUF_QUERY_KEY_NORMS),
    onnx=Onnx("Qwen3Model"),
    settings={**GATED_SETTINGS, **QWEN_WINDOWS, "attention_bias": Setting(gguf=(False,))},
    defaults={"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
)
