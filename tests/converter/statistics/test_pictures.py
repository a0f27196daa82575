"""Calibration on pictures: blocks see what the whole model gives its language model."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_export.cli import app
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.families.table import family_of
from lowrank_export.converter.model.blocks import BlockSource
from lowrank_export.converter.pipeline import compress
from lowrank_export.converter.statistics.calibration import calibrate
from lowrank_export.converter.statistics.pictures import calibrate_on_pairs

PIL = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
CPU = torch.device("cpu")
TEXTS = ("What is in it? Numbers: 0123456789, and 3.14159 too.", "A rank is a budget; a budget is a choice.")


def pictured(folder: Path) -> str:
    """Two pictures of noise, and a file of records that names them; its spec."""
    noise = np.random.default_rng(0)
    for number in range(len(TEXTS)):
        pixels = noise.integers(0, 256, (40, 36 + 8 * number, 3), dtype=np.uint8)
        PIL.fromarray(pixels).save(folder / f"{number}.png")
    records = [{"image": f"{number}.png", "text": text} for number, text in enumerate(TEXTS)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, records)))
    return f"{folder / 'pairs.jsonl'}#image+text"


@pytest.fixture
def dense(tmp_path: Path, tiny: ModuleType, tiny_vision: ModuleType) -> Any:
    return tiny_vision.save_seeing(tmp_path / "dense", tiny, "llava", "llama")


def drawn(folder: Path, spec: str, **sizes: int) -> Any:
    sizes = {"windows": 1, "length": 8, "held_out": 0, "seed": 0, "first": 352, **sizes}
    return calibrate_on_pairs(spec, CheckpointReader(folder), device=CPU, **sizes)


@pytest.mark.parametrize(("name", "text"), [("llava", "llama"), ("llava", "mistral"), ("idefics3", "llama")])
def test_blocks_see_what_the_whole_model_sees(
    name: str, text: str, tmp_path: Path, tiny: ModuleType, tiny_vision: ModuleType
) -> None:
    dense, spec = tiny_vision.save_seeing(tmp_path / "dense", tiny, name, text), pictured(tmp_path)
    (tmp_path / "pairs.jsonl").write_text((tmp_path / "pairs.jsonl").read_text().splitlines()[0])
    given = tiny_vision.processor(tiny, name)(
        images=[PIL.open(tmp_path / "0.png").convert("RGB")], text=[f"<image>\n{TEXTS[0]}"], return_tensors="pt"
    )
    with torch.no_grad():
        expected = dense(**given).logits[0]
    found = drawn(tmp_path / "dense", spec, length=len(expected))
    assert found.windows.shape == (1, len(expected)) and found.features.shape == (4, 64)
    assert found.windows.max() == 355 and found.drawn_from.documents == 1
    reader = CheckpointReader(tmp_path / "dense")
    blocks = BlockSource(reader, family_of(reader.config, "here"), CPU, torch.float32)
    blocks.see(torch.from_numpy(found.features))
    (stream,) = blocks.embed([torch.from_numpy(found.windows)])
    for number in range(blocks.block_count):
        stream = blocks.run(blocks.block(number), stream)
    head = blocks.head()
    torch.testing.assert_close(head.logits(head.norm(stream))[0], expected)


def test_windows_keep_the_features_that_they_hold(dense: Any, tmp_path: Path) -> None:
    spec = pictured(tmp_path)
    whole = drawn(tmp_path / "dense", spec, windows=3, held_out=1, length=8)
    assert whole.windows.shape == (3, 8) and whole.held_out.shape == (1, 8)
    both = np.concatenate([whole.windows, whole.held_out])
    assert set(both[both >= 352]) == set(range(352, 352 + len(whole.features)))
    again = drawn(tmp_path / "dense", spec, windows=3, held_out=1, length=8)
    assert again.sha256 == whole.sha256
    for number in range(len(TEXTS)):
        PIL.new("RGB", (32, 32), "red").save(tmp_path / f"{number}.png")
    assert drawn(tmp_path / "dense", spec, windows=3, held_out=1, length=8).sha256 != whole.sha256


def test_embeddings_are_scaled_and_pictures_are_not(tmp_path: Path, tiny: ModuleType, tiny_vision: ModuleType) -> None:
    """Gemma's; its processor calls a picture by the token that it begins with."""
    tiny_vision.save_seeing(tmp_path / "dense", tiny, "gemma3", "gemma3_text")
    found = drawn(tmp_path / "dense", pictured(tmp_path), windows=4, length=12)
    reader = CheckpointReader(tmp_path / "dense")
    blocks = BlockSource(reader, family_of(reader.config, "here"), CPU, torch.float32)
    blocks.see(torch.zeros(3, 64))
    assert blocks.seen == 3
    blocks.see(torch.from_numpy(found.features))
    tokens = torch.tensor([[5, 352 + 3, 7]])
    (stream,) = blocks.embed([tokens])
    table = reader.tensor("model.embed_tokens.weight")
    torch.testing.assert_close(stream[0, 0], table[5] * 8)
    assert stream[0, 1].equal(torch.from_numpy(found.features)[0])


@pytest.mark.parametrize("method", ["adasvd", "loss-aware"])
def test_a_compression(
    method: str, dense: Any, tmp_path: Path, tiny: ModuleType, tiny_vision: ModuleType, small_recipe: Any
) -> None:
    spec = pictured(tmp_path)
    compress(small_recipe(tmp_path, calibration=spec, method=method, windows=6, window_length=8), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "calibration.json").read_text())
    assert (record["text"], record["drawn_from"]["documents"]) == (spec, 2)
    tiny_vision.load(tmp_path / "out")
    with pytest.raises(InputError, match="give a text"):
        calibrate(spec, tiny.tokenizer(), windows=1, length=8, held_out=0, seed=0)


def test_the_same_on_a_gpu(dense: Any, tmp_path: Path, small_recipe: Any, gpu: Any) -> None:
    """Nothing is left on the wrong device."""
    recipe = small_recipe(
        tmp_path, calibration=pictured(tmp_path), windows=6, window_length=8, activations="float32", method="svd-llm"
    )
    for device in ("cpu", "cuda"):
        compress(recipe, tmp_path / device, device=device)
    for file in (tmp_path / "cpu").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "cuda" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("keys", "line"),
    [({"method": "fwsvd"}, "method fwsvd predicts its tokens"), ({"refine": "model"}, "--refine model predicts")],
)
def test_what_predicts_tokens_takes_no_pictures(
    keys: dict[str, str], line: str, dense: Any, tmp_path: Path, small_recipe: Any
) -> None:
    with pytest.raises(InputError, match=line):
        compress(small_recipe(tmp_path, calibration=pictured(tmp_path), **keys), tmp_path / "out")


def test_refused(dense: Any, tmp_path: Path) -> None:
    spec = pictured(tmp_path)
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"line 2: the model's processor cannot read '1.png' \("):
        drawn(tmp_path / "dense", spec)
    for file in ("processor_config.json", "preprocessor_config.json"):
        (tmp_path / "dense" / file).unlink(missing_ok=True)
    with pytest.raises(InputError, match="no usable processor of pictures"):
        drawn(tmp_path / "dense", spec)


def test_places_of_pictures_that_are_none_of_text(tmp_path: Path, tiny: ModuleType, tiny_vision: ModuleType) -> None:
    tiny_vision.save(tmp_path / "dense", tiny, "qwen2_5_vl", "qwen2")
    with pytest.raises(InputError, match="places of pictures are no places of text"):
        drawn(tmp_path / "dense", pictured(tmp_path))


def test_sizes_and_aware_rounding_take_no_pictures(dense: Any, tmp_path: Path, tiny: ModuleType) -> None:
    from typer.testing import CliRunner

    words = tiny.job_options(tmp_path / "dense", tmp_path / "out", pictured(tmp_path))
    done = CliRunner().invoke(app, [*words, "--format", "gguf", "--gguf-rounding", "aware"])
    assert done.exit_code == 2 and "sizes and aware rounding run texts, without pictures" in done.stderr
