"""Granite: Llama's shape with four multipliers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .family import Family, Gguf, Onnx, Setting, Value
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
)

SCALES = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}


def _embedding_multiplier(config: Any) -> float:
    return float(config.embedding_multiplier)


def _inverse_logits_scaling(config: Any) -> float:
    return 1.0 / float(config.logits_scaling)


def _gguf_keys(config: Mapping[str, Any]) -> Mapping[str, Value]:
    return {name: float(config.get(key, 1.0)) for key, name in SCALES.items()}


FAMILY = Family(
    "granite",
    *PLACES,
    groups=GATED,
    shared_orders=GATED_ORDER,
    compressed=True,
    norms=TWO_NORMS,
    biases={**ATTENTION_BIAS, **MLP_BIAS},
    embedding_scale=_embedding_multiplier,
    logit_scale=_inverse_logits_scaling,
    gguf=Gguf("granite", GGUF_BLOCK, GGUF_OUTSIDE, interleaved=True, keys=_gguf_keys, factored=True),
    onnx=Onnx("GraniteModel"),
    settings={
        **GATED_SETTINGS,
        "attention_bias": Setting(),
        "mlp_bias": Setting(),
        "embedding_multiplier": Setting(),
        "attention_multiplier": Setting(),
        "residual_multiplier": Setting(),
        "logits_scaling": Setting(),
    },
    defaults={"max_position_embeddings": 2048},
    tiny={
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
)
