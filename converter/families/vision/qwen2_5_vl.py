"""Qwen2.5-VL: a tower of its own, and a Qwen 2 whose positions are triples, which are all the same for text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .. import qwen2
from ..family import Value
from .vision_language import VisionLanguage

SECTIONS = "_mrope_section"
ROTARY = ("rope_parameters", "rope_scaling")
AROUND = ("vision_config", "text_config", "architectures", "video_token_id", "image_token_id")


def _language(whole: Mapping[str, Any]) -> Any:
    """The language model as a Qwen 2, the sections of its rotary embedding set apart; the hub's say it all in one."""
    text = whole.get("text_config")
    if text is None:
        text = {key: value for key, value in whole.items() if key not in AROUND and not key.startswith("vision_")}
    if not isinstance(text, Mapping):
        return text
    found = {**text, "model_type": qwen2.FAMILY.model_type}
    for key in ROTARY:
        if isinstance(rope := found.get(key), Mapping):
            plain = {name: value for name, value in rope.items() if name != "mrope_section" and value != "mrope"}
            found[key] = {"rope_type": "default", **plain}
            found[SECTIONS] = rope.get("mrope_section") or found.get(SECTIONS)
    return found


def _gguf_keys(config: Mapping[str, Any]) -> Mapping[str, Value]:
    """llama.cpp has a fourth section, which is empty."""
    return {"rope.dimension_sections": [*map(int, config[SECTIONS]), 0]}


assert qwen2.FAMILY.gguf is not None
MODEL = VisionLanguage(
    "qwen2_5_vl",
    texts=("qwen2",),
    inside="model.language_model",
    stored=("model.language_model.", "model."),
    heads=("lm_head.",),
    beside=("visual",),
    tied_by_text=True,
    language=_language,
    assumed="qwen2_5_vl_text",
    gguf=replace(qwen2.FAMILY.gguf, architecture="qwen2vl", keys=_gguf_keys, read=False),
    as_text=False,
    tiny={
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 64,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 8,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        "image_token_id": 300,
        "video_token_id": 301,
        "vision_start_token_id": 302,
        "vision_end_token_id": 303,
    },
    tiny_text={"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}},
)
