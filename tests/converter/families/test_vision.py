"""The table of vision-language models: one file each, agreeing with transformers."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from lowrank_export.converter.families import vision
from lowrank_export.converter.families.table import compressed
from lowrank_export.converter.families.vision.table import VISION_LANGUAGE, vision_language


def test_each_model_has_a_file_of_its_name() -> None:
    shared = {"__init__", "table", "vision_language"}
    files = {path.stem for path in Path(str(vision.__file__)).parent.glob("*.py")} - shared
    assert files == set(VISION_LANGUAGE)
    assert all(name == of.model_type for name, of in VISION_LANGUAGE.items())


@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_places_are_those_of_transformers(name: str, tiny: ModuleType, tiny_vision: ModuleType) -> None:
    of = VISION_LANGUAGE[name]
    assert set(of.texts) <= set(compressed())
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(tiny_vision.config(tiny, name, of.texts[0], tied=False))
    parts = {name.removeprefix("model.").partition(".")[0] for name in model.state_dict()}
    assert parts == {of.inside.removeprefix("model."), *of.beside, "lm_head"}
    assert of.stored[0] == of.inside + "."


@pytest.mark.parametrize("name", VISION_LANGUAGE)
def test_what_a_silent_config_says_is_what_transformers_assumes(name: str) -> None:
    of, silent = VISION_LANGUAGE[name], AutoConfig.for_model(name)
    assert silent.tie_word_embeddings == of.tied
    kind = of.assumed or of.texts[0]
    assert silent.text_config.model_type == kind
    said = AutoConfig.for_model(name, text_config={"model_type": kind, "tie_word_embeddings": not of.tied})
    assert said.tie_word_embeddings == (of.tied or of.tied_by_text)


def test_lookup() -> None:
    assert vision_language({"model_type": "llava"}) is VISION_LANGUAGE["llava"]
    assert vision_language({"model_type": "llama"}) is None and vision_language({}) is None
