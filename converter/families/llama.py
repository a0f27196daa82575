"""Llama 1 to 3, and the many models that took its shape (SmolLM2, TinyLlama, Yi, ...)."""

from __future__ import annotations

from .family import Family, Onnx, Setting
from .parts import ATTENTION_BIAS, GATED, GATED_ORDER, GATED_SETTINGS, MLP_BIAS, PLACES, TWO_NORMS, verified_gguf

FAMILY = Family(
    "llama",
    *PLACES,
    groups=GATED,
    shared_orders=GATED_ORDER,
    compressed=True,
    norms=TWO_NORMS,
    biases={**ATTENTION_BIAS, **MLP_BIAS},
    gguf=verified_gguf("llama", interleaved=True),
    onnx=Onnx("LlamaModel"),
    settings={**GATED_SETTINGS, "attention_bias": Setting(), "mlp_bias": Setting()},
    defaults={"max_position_embeddings": 2048},
)
