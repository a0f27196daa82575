"""Qwen2-VL: Qwen2.5-VL's language model beside an older tower."""

from __future__ import annotations

from dataclasses import replace

from . import qwen2_5_vl

MODEL = replace(
    qwen2_5_vl.MODEL,
    model_type="qwen2_vl",
    assumed="qwen2_vl_text",
    tiny={
        **qwen2_5_vl.MODEL.tiny,
        "vision_config": {
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "mlp_ratio": 2,
            "num_heads": 2,
            "patch_size": 8,
        },
    },
)
