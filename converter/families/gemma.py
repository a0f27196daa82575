"""Gemma 1: embeddings scaled by the root of their width, norms that add one to their weight."""

from __future__ import annotations

from .family import Family, Gguf, Onnx, Setting
from .parts import (
    ATTENTION_BIAS,
    BASE,
    CAUSAL,
    GATED,
    GATED_ORDER,
    GGUF_BLOCK,
    GGUF_OUTSIDE,
    PLACES,
    TIED,
    TWO_NORMS,
    root_of_width,
)

FAMILY = Family(
    "gemma",
    *PLACES,
    groups=GATED,
    shared_orders=GATED_ORDER,
    compressed=True,
    norms=TWO_NORMS,
    biases=ATTENTION_BIAS,
    embedding_scale=root_of_width,
    gguf=Gguf("gemma", GGUF_BLOCK, GGUF_OUTSIDE, norm_shift=1.0, factored=True),
    onnx=Onnx("GemmaModel"),
    settings={
        **BASE,
        **CAUSAL,
        **TIED,
        "hidden_act": Setting(gguf=("gelu", "gelu_pytorch_tanh")),  # transformers takes the first for the second
        "hidden_activation": Setting(),
        "rms_norm_eps": Setting(),
        "attention_bias": Setting(gguf=(False,)),
    },
    defaults={"tie_word_embeddings": True, "max_position_embeddings": 8192, "num_key_value_heads": 16, "head_dim": 256},
)
