"""Compressions of tiny random vision-language models: the whole of each loads, sees, and writes."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lowrank_export.converter.checkpoint.lowrank_linear import LowRankLinear
from lowrank_export.converter.checkpoint.pivot_linear import PivotLinear
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.model.loading import load
from lowrank_export.converter.pipeline import compress

RANK = 8
"""Of every linear of the language model: factors of a higher rank lose nothing."""


def compressed(folder: Path, tiny: ModuleType, small_recipe: Any, **keys: Any) -> Path:
    (folder / "text.txt").write_text(tiny.TEXT, encoding="utf-8")
    compress(small_recipe(folder, method="svd-llm", windows=4, **keys), folder / "out")
    return folder / "out"


@pytest.mark.parametrize("tied", [True, False])
def test_every_model(tied: bool, tmp_path: Path, tiny: ModuleType, tiny_vision: ModuleType, small_recipe: Any) -> None:
    """The factors of matrices of low rank are exact: every picture is answered as before."""
    for name, text in tiny_vision.CASES:
        folder = tmp_path / f"{name}-{text}"
        dense = tiny_vision.save(folder / "dense", tiny, name, text, tied=tied, rank=RANK)
        out = compressed(folder, tiny, small_recipe)
        small = tiny_vision.load(out)
        factored = [name for name, module in small.named_modules() if isinstance(module, LowRankLinear)]
        assert len(factored) == 14
        torch.testing.assert_close(tiny_vision.answer(small, name), tiny_vision.answer(dense, name), rtol=0, atol=2e-3)
        assert tiny_vision.caption(small, tiny, name) == tiny_vision.caption(dense, tiny, name) != ""
        before, after = CheckpointReader(folder / "dense"), CheckpointReader(out)
        assert before.beside == after.beside and before.beside
        assert all(before.tensor_beside(name).equal(after.tensor_beside(name)) for name in before.beside)


def test_it_can_be_saved_and_loaded_again(
    tmp_path: Path, tiny: ModuleType, tiny_vision: ModuleType, small_recipe: Any
) -> None:
    """transformers writes the names of its older versions; pivot rows too, and the order that they come in."""
    tiny_vision.save(tmp_path / "dense", tiny, "llava", "llama", tied=False)
    out = compressed(tmp_path, tiny, small_recipe, layout="pivot")
    small = tiny_vision.load(out)
    assert any(isinstance(module, PivotLinear) and module.lowrank_perm is not None for module in small.modules())
    small.save_pretrained(tmp_path / "again")
    again = tiny_vision.load(tmp_path / "again")
    assert tiny_vision.answer(again, "llava").equal(tiny_vision.answer(small, "llava"))
    reader = CheckpointReader(tmp_path / "again")
    assert reader.ranks == CheckpointReader(out).ranks and "model.layers.0.mlp.up_proj" in reader.ranks
    tokens = torch.arange(1, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "again")(tokens).logits, again(input_ids=tokens).logits)


def test_the_folder_is_whole(tmp_path: Path, tiny: ModuleType, tiny_vision: ModuleType, small_recipe: Any) -> None:
    """What goes with pictures comes along; config.json and the card say what the folder is."""
    tiny_vision.save(tmp_path / "dense", tiny, "gemma3", "gemma3_text")
    files = (
        "processor_config.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "chat_template.json",
    )
    for file in files:
        (tmp_path / "dense" / file).write_text(f'{{"of": "{file}"}}')
    out = compressed(tmp_path, tiny, small_recipe, dtype="bfloat16")
    assert all(json.loads((out / file).read_text()) == {"of": file} for file in files)
    said, before = (json.loads((folder / "config.json").read_text()) for folder in (out, tmp_path / "dense"))
    assert (said["model_type"], said["architectures"]) == ("lowrank_gemma3", ["LowRankGemma3ForConditionalGeneration"])
    assert all(said[key] == before[key] for key in ("text_config", "vision_config", "mm_tokens_per_image"))
    assert "model.language_model.layers.1.self_attn.q_proj" in said["quantization_config"]["ranks"]
    reader = CheckpointReader(out)
    assert reader.dtype("model.norm.weight") == "BF16"
    assert {reader.tensor_beside(name).dtype for name in reader.beside} == {torch.float32}
    assert "AutoModelForImageTextToText.from_pretrained" in (out / "README.md").read_text()


def test_a_configuration_that_says_all_in_one(
    tmp_path: Path, tiny: ModuleType, tiny_vision: ModuleType, small_recipe: Any
) -> None:
    """The hub's of Qwen2.5-VL: no `text_config`, and none is made."""
    dense = tiny_vision.save(tmp_path / "dense", tiny, "qwen2_5_vl", "qwen2", rank=RANK)
    file = tmp_path / "dense" / "config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said.pop("text_config"), **said}))
    out = compressed(tmp_path, tiny, small_recipe)
    assert "text_config" not in json.loads((out / "config.json").read_text())
    small = tiny_vision.load(out)
    expected = tiny_vision.answer(dense, "qwen2_5_vl")
    torch.testing.assert_close(tiny_vision.answer(small, "qwen2_5_vl"), expected, rtol=0, atol=2e-3)
