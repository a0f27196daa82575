"""Mistral 7B and its kin: Llama's shape with a sliding window."""

from __future__ import annotations

from .family import Family, Onnx, Setting
from .parts import GATED, GATED_ORDER, GATED_SETTINGS, PLACES, TWO_NORMS, verified_gguf, window_everywhere

FAMILY = Family(
    "mistral",
    *PLACES,
    groups=GATED,
    shared_orders=GATED_ORDER,
    compressed=True,
    norms=TWO_NORMS,
    gguf=verified_gguf("llama", interleaved=True),
    onnx=Onnx("MistralModel", adapt=window_everywhere),
    settings={**GATED_SETTINGS, "sliding_window": Setting()},
    defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
)
