"""Gemma 3 from 4B on: SigLIP, a projection of pooled patches, and Gemma 3's text model."""

from __future__ import annotations

from .vision_language import TINY_VISION, VisionLanguage

MODEL = VisionLanguage(
    "gemma3",
    texts=("gemma3_text",),
    inside="model.language_model",
    stored=("model.language_model.", "language_model.model."),
    heads=("language_model.lm_head.", "lm_head."),
    beside=("vision_tower", "multi_modal_projector"),
    tied=True,
    tiny={
        "vision_config": {"model_type": "siglip_vision_model", **TINY_VISION},
        "image_token_index": 300,
        "boi_token_index": 301,
        "eoi_token_index": 302,
        "mm_tokens_per_image": 4,
    },
)
