"""Tiny random vision-language models: a tower of two blocks, pictures of 32 x 32 pixels, a tiny language model."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from lowrank_export.converter.families.vision.table import VISION_LANGUAGE

CASES = tuple((name, text) for name, of in VISION_LANGUAGE.items() for text in of.texts)
"""Every model, around every language model that it is read with."""
IMAGE = 300
"""The token that stands for a part of a picture."""
PATCHES = 4
"""Tokens that a picture becomes."""


def model(tiny: ModuleType, name: str, text: str, **options: Any) -> PreTrainedModel:
    """A random model in float32, as those of `tiny.model`."""
    of = VISION_LANGUAGE[name]
    inner = tiny.config(text, **options).to_dict()
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, text_config=inner, tie_word_embeddings=options.get("tied", True), **of.tiny)
    built = AutoModelForImageTextToText.from_config(config).float().eval()
    with torch.no_grad():
        for key, parameter in built.named_parameters():
            if parameter.ndim == 1:
                center = 0.0 if key.endswith("bias") else 1.0
                parameter.copy_(center + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter[0].numel() ** -0.5)
    return built


def save(folder: Path, tiny: ModuleType, name: str, text: str, **options: Any) -> PreTrainedModel:
    """Write a model with a tokenizer; return it."""
    built = model(tiny, name, text, **options)
    built.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return built


def load(folder: Path) -> PreTrainedModel:
    """The whole model of a folder, as a user of transformers loads it; every weight is there."""
    found, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    loaded: PreTrainedModel = found.float().eval()
    return loaded


def question(seed: int = 1) -> dict[str, torch.Tensor]:
    """A picture of noise between some tokens, as a processor gives them."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(1, 290, (2, 6), generator=generator)
    ids = torch.cat([words[0], torch.full((PATCHES,), IMAGE), words[1]])[None]
    pixels = torch.randn(1, 3, 32, 32, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def asked(name: str, seed: int = 1) -> dict[str, torch.Tensor]:
    """`question` as the processor of a model gives it."""
    found = question(seed)
    if "connector" in VISION_LANGUAGE[name].beside:
        found["pixel_values"] = found["pixel_values"][:, None]  # several pictures to a text
    if name == "gemma3":
        found["token_type_ids"] = (found["input_ids"] == IMAGE).long()
    return found
