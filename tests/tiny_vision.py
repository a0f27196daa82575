"""Tiny random vision-language models: a tower of two blocks, pictures of 32 x 32 pixels, a tiny language model."""

from __future__ import annotations

from copy import deepcopy
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


def config(tiny: ModuleType, name: str, text: str, *, tied: bool = True, **options: Any) -> Any:
    """A configuration around one of `tiny.config`."""
    of, inner = VISION_LANGUAGE[name], tiny.config(text, tied=tied, **options).to_dict()
    inner |= {"model_type": of.assumed or text, **of.tiny_text}
    return AutoConfig.for_model(name, text_config=inner, tie_word_embeddings=tied, **deepcopy(dict(of.tiny)))


def model(tiny: ModuleType, name: str, text: str, *, rank: int | None = None, **options: Any) -> PreTrainedModel:
    """A random model in float32 around the one of `tiny.model`; linears of that have `rank`, if it is given."""
    inner = tiny.model(text, **options)
    torch.manual_seed(0)
    built = AutoModelForImageTextToText.from_config(config(tiny, name, text, **options)).float().eval()
    with torch.no_grad():
        for key, parameter in built.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(0.2 * torch.randn_like(parameter) + (not key.endswith("bias")))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter[0].numel() ** -0.5)
        for key, parameter in inner.named_parameters() if rank is not None else ():
            if "_proj.weight" in key:
                u, s, vt = torch.linalg.svd(parameter, full_matrices=False)
                parameter.copy_(u[:, :rank] * s[:rank] @ vt[:rank])
    built.get_submodule(VISION_LANGUAGE[name].inside).load_state_dict(inner.model.state_dict())
    built.get_output_embeddings().load_state_dict(inner.lm_head.state_dict())
    return built


def save(folder: Path, tiny: ModuleType, name: str, text: str, **options: Any) -> PreTrainedModel:
    """Write a model with a tokenizer; return it."""
    built = model(tiny, name, text, **options)
    built.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return built


def processor(tiny: ModuleType, name: str) -> Any:
    """A processor for pictures of 32 x 32 pixels, which become four tokens."""
    import transformers as t

    named = (
        {"image_token": "<image>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
        if name == "gemma3"
        else {}
    )
    others = ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
    tokenizer = t.PreTrainedTokenizerFast(
        tokenizer_object=deepcopy(tiny.tokenizer().backend_tokenizer),
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=named or list(others),
    )
    square = {"height": 32, "width": 32}
    if name == "llava":
        pictures: Any = t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square)
        clip = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        return t.LlavaProcessor(pictures, tokenizer, patch_size=16, **clip)
    if name == "gemma3":
        return t.Gemma3Processor(t.Gemma3ImageProcessor(size=square), tokenizer, image_seq_length=4)
    edge = {"longest_edge": 32}
    pictures = t.Idefics3ImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False)
    return t.Idefics3Processor(pictures, tokenizer, image_seq_len=4)


def save_seeing(folder: Path, tiny: ModuleType, name: str, text: str) -> PreTrainedModel:
    """Write a model with its processor, which needs Pillow; return the model."""
    built, seeing = model(tiny, name, text, vocab_size=352), processor(tiny, name)
    number = seeing.tokenizer.convert_tokens_to_ids("<image>")
    built.config.image_token_id = number  # type: ignore[attr-defined]
    built.model.image_token_id = number
    built.save_pretrained(folder)
    seeing.save_pretrained(folder)
    return built


def load(folder: Path) -> PreTrainedModel:
    """The whole model of a folder in float32, as a user of transformers loads it; every weight is there."""
    found, info = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    loaded: PreTrainedModel = found.eval()
    return loaded


def question(name: str, seed: int = 1) -> dict[str, torch.Tensor]:
    """A picture of noise between some words, as a model's processor gives them."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(1, 290, (2, 6), generator=generator)
    ids = torch.cat([words[0], torch.full((PATCHES,), IMAGE), words[1]])[None]
    pixels = torch.randn(1, 3, 32, 32, generator=generator)
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    if "connector" in VISION_LANGUAGE[name].beside:
        found["pixel_values"] = pixels[:, None]  # several pictures to a text
    if name.startswith("qwen"):
        found["pixel_values"] = torch.randn(16, 3 * 2 * 8 * 8, generator=generator)
        found["image_grid_thw"] = torch.tensor([[1, 4, 4]])
        found["mm_token_type_ids"] = (ids == IMAGE).int()
    if name == "gemma3":
        found["token_type_ids"] = (ids == IMAGE).long()
    return found


@torch.no_grad()
def answer(model: PreTrainedModel, name: str) -> torch.Tensor:
    """Logits of a question about a picture."""
    found: torch.Tensor = model(**question(name)).logits
    return found


def caption(model: PreTrainedModel, tiny: ModuleType, name: str, length: int = 12) -> str:
    """What a model writes about a picture, greedily."""
    asked = question(name)
    written: Any = model.generate(**asked, max_new_tokens=length, do_sample=False)  # type: ignore[operator]
    text: str = tiny.tokenizer().decode(written[0, asked["input_ids"].shape[1] :])
    return text
