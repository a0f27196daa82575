"""Idefics 3 and SmolVLM 1: SigLIP, patches shuffled into fewer, a Llama."""

from __future__ import annotations

from .vision_language import TINY_VISION, VisionLanguage

MODEL = VisionLanguage(
    "idefics3",
    texts=("llama",),
    inside="model.text_model",
    stored=("model.text_model.",),
    heads=("lm_head.",),
    beside=("vision_model", "connector"),
    idle=frozenset(  # of a class that came before transformers' own
        (
            "perceiver_config",
            "pixel_shuffle_factor",
            "qk_layer_norms",
            "rope_interleaved",
            "use_resampler",
        )
    ),
    tiny={"vision_config": TINY_VISION, "image_token_id": 300, "scale_factor": 1},
)
