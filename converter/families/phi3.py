"""Phi-3 and Phi-4 mini: q, k and v in one linear, gate and up in another."""

from __future__ import annotations

from .family import Family, InputGroup, Onnx, Setting
from .parts import GATED_SETTINGS, PLACES, TWO_NORMS, window_everywhere

FAMILY = Family(
    "phi3",
    *PLACES,
    groups=(
        InputGroup("attention in", ("self_attn.qkv_proj",)),
        InputGroup("attention out", ("self_attn.o_proj",)),
        InputGroup("mlp in", ("mlp.gate_up_proj",)),
        InputGroup("mlp out", ("mlp.down_proj",)),
    ),
    compressed=True,
    norms=TWO_NORMS,
    onnx=Onnx("Phi3MiniModel", adapt=window_everywhere),
    settings={
        **GATED_SETTINGS,
        "sliding_window": Setting(),
        "original_max_position_embeddings": Setting(),
    },
    defaults={"max_position_embeddings": 4096},
)
