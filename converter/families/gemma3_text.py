"""Gemma 3's text model, exported but not compressed: a rotary embedding per kind of block."""

from __future__ import annotations

from typing import Any

from .family import Family, Onnx, Setting
from .gemma2 import MORE_NORMS, SETTINGS
from .parts import ATTENTION_BIAS, GATED, PLACES, QUERY_KEY_NORMS, TWO_NORMS


def _flat_rotary(config: Any) -> None:
    """GenAI's builder reads one set of rotary parameters, and the base of the other kind of block."""
    kinds = config.rope_parameters
    some = kinds.get("full_attention") or kinds.get("sliding_attention")
    config.rope_local_base_freq = (kinds.get("sliding_attention") or some)["rope_theta"]
    config.rope_parameters = dict(some)


FAMILY = Family(
    "gemma3_text",
    *PLACES,
    groups=GATED,
    norms=(*TWO_NORMS, *MORE_NORMS, *QUERY_KEY_NORMS),
    biases=ATTENTION_BIAS,
    onnx=Onnx("Gemma3Model", genai_type="gemma3_text", adapt=_flat_rotary),
    settings={
        **SETTINGS,
        "rope_local_base_freq": Setting(),
        "sliding_window_pattern": Setting(),
        "_sliding_window_pattern": Setting(),
    },
    defaults={
        "tie_word_embeddings": True,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 4,
        "head_dim": 256,
    },
)
