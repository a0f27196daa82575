"""Granite: Llama's shape with four multipliers."""

from __future__ import annotations

from typing import Any

from .family import Family, Onnx, Setting
from .parts import ATTENTION_BIAS, GATED, GATED_ORDER, GATED_SETTINGS, MLP_BIAS, PLACES, TWO_NORMS


def _embedding_multiplier(config: Any) -> float:
    return float(config.embedding_multiplier)


def _inverse_logits_scaling(config: Any) -> float:
    return 1.0 / float(config.logits_scaling)


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
)
