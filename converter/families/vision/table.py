"""Every vision-language model, and how one is looked up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import gemma3, idefics3, llava, qwen2_5_vl, qwen2_vl, smolvlm
from .vision_language import VisionLanguage

VISION_LANGUAGE: Mapping[str, VisionLanguage] = {
    module.MODEL.model_type: module.MODEL for module in (llava, gemma3, qwen2_5_vl, qwen2_vl, smolvlm, idefics3)
}
"""config.json's `model_type` -> model, in the order in which messages name them."""


def vision_language(config: Mapping[str, Any]) -> VisionLanguage | None:
    """The vision-language model named by a config's `model_type`; None if it names none of these."""
    return VISION_LANGUAGE.get(str(config.get("model_type")))
