"""Qwen 1.5, 2 and 2.5: biases of q, k and v, and a sliding window in some blocks, if switched on."""

from __future__ import annotations

from .family import Family, Onnx
from .parts import ATTENTION, GATED, GATED_ORDER, GATED_SETTINGS, PLACES, QWEN_WINDOWS, TWO_NORMS, verified_gguf

FAMILY = Family(
    "qwen2",
    *PLACES,
    groups=GATED,
    shared_orders=GATED_ORDER,
    compressed=True,
    norms=TWO_NORMS,
    biases=dict.fromkeys(ATTENTION[:3], ""),
    gguf=verified_gguf("qwen2"),
    onnx=Onnx("QwenModel"),
    settings={**GATED_SETTINGS, **QWEN_WINDOWS},
    defaults={"max_position_embeddings": 32768, "num_key_value_heads": 32},
)
