"""LLaVA 1.5 and its kin: CLIP, a projector of two linears, a Llama, Mistral or Qwen 2."""

from __future__ import annotations

from .vision_language import TINY_VISION, VisionLanguage

MODEL = VisionLanguage(
    "llava",
    texts=("llama", "mistral", "qwen2"),
    inside="model.language_model",
    stored=("model.language_model.", "language_model.model."),
    heads=("language_model.lm_head.", "lm_head."),
    beside=("vision_tower", "multi_modal_projector"),
    tied_by_text=True,
    tiny={"vision_config": {"model_type": "clip_vision_model", **TINY_VISION}, "image_token_index": 300},
)
