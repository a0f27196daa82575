"""Predicted bytes against real exports."""

from __future__ import annotations

from math import prod
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lowrank_export.converter.allocation.plan import RankPlan
from lowrank_export.converter.checkpoint.layouts import LAYOUTS
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.core.recipe import Recipe
from lowrank_export.converter.pipeline import compress
from lowrank_export.converter.planning.preparation import prepared
from lowrank_export.exporters import forecast
from lowrank_export.exporters.export import export
from lowrank_export.exporters.forecast import bytes_json, forecast_exports, storage_json
from lowrank_export.exporters.gguf.imatrix import Importance, write_imatrix
from lowrank_export.exporters.gguf.mixes import MIXES, fallback_lines
from lowrank_export.exporters.gguf.rounding_choice import Rounding
from lowrank_export.exporters.gguf.types import TYPES
from lowrank_export.exporters.onnx.weights.types import OnnxOptions
from lowrank_export.exporters.registry import TARGETS, requested

SIZES = {"hidden_size": 256, "intermediate_size": 1280, "head_dim": 64}  # large enough for the vocabulary not to count


@pytest.fixture(scope="module", params=LAYOUTS)
def models(
    tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Path, RankPlan]:
    """A folder with "dense" and "factored", and the plan between them."""
    folder = tmp_path_factory.mktemp("models")
    tiny.save_dense(folder / "dense", "llama", blocks=1, **SIZES)
    options = {"method": "svd", "retention": 0.5, "keep_dense": ("*.o_proj",), "layout": request.param}
    recipe = Recipe(model=str(folder / "dense"), **options)
    with prepared(recipe, device="cpu", progress=SilentProgress()) as job:
        plan = job.plan
    compress(recipe, folder / "factored")
    return folder, plan


def test_every_export_is_foretold(models: tuple[Path, RankPlan]) -> None:
    folder, plan = models
    foretold = bytes_json(forecast_exports(CheckpointReader(folder / "dense"), plan))
    expected = [f"{format} {type}" for format, target in TARGETS.items() for type in target.types()]
    assert list(foretold) == expected
    for name, size in foretold.items():
        narrow = name.startswith("onnx")  # where most linears are multiplied out again, in some types all
        assert 0 < size["factored"] < size["dense"] + narrow, name


@pytest.mark.parametrize("model", ["dense", "factored"])
@pytest.mark.parametrize("quantization", TARGETS["gguf"].types())
def test_gguf_sizes(models: tuple[Path, RankPlan], tmp_path: Path, quantization: str, model: str) -> None:
    folder, plan = models
    rounding = Rounding()
    if TYPES[MIXES[quantization].base].importance:
        stored = export(folder / model, tmp_path / "f32.gguf", requested("gguf", "f32")).tensors
        alike = {tensor.name: np.ones(tensor.shape[-1], np.float32) for tensor in stored}
        said = {"architecture": "llama", "text": "", "windows": 1, "window_length": 1, "force": False}
        write_imatrix(Importance(alike, 1), tmp_path / "i.gguf", **said)
        rounding = Rounding(imatrix=tmp_path / "i.gguf")
    made = export(folder / model, tmp_path / "m.gguf", requested("gguf", quantization, rounding=rounding))
    if model == "factored":
        permutations = [tensor.name for tensor in made.tensors if tensor.name.endswith("lowrank_perm")]
        assert len(permutations) == (4 if CheckpointReader(folder / model).layout == "pivot" else 0)  # q, k, v, down
    foretold = forecast_exports(CheckpointReader(folder / "dense"), plan)
    predicted = bytes_json(foretold)[f"gguf {quantization}"][model]
    assert predicted == pytest.approx(made.bytes, rel=0.03)
    if model == "factored":
        storage = storage_json(foretold)[f"gguf {quantization}"]
        assert storage["fallbacks"] == fallback_lines(made.tensors)
        assert bool(storage["fallback_share"]) == bool(storage["fallbacks"])
        matrices = [tensor for tensor in made.tensors if len(tensor.shape) > 1]
        bits = 8 * sum(t.bytes for t in matrices) / sum(prod(t.shape) for t in matrices)
        assert storage["bits_per_weight"] == pytest.approx(bits)
    assert predicted < made.bytes  # metadata and vocabulary come on top


@pytest.mark.parametrize("quantization", TARGETS["onnx"].types())
def test_onnx_size(models: tuple[Path, RankPlan], tmp_path: Path, quantization: str) -> None:
    folder, plan = models
    made = export(folder / "factored", tmp_path / "onnx", requested("onnx", quantization))
    reader = CheckpointReader(folder / "dense")
    foretold = forecast_exports(reader, plan)[f"onnx {quantization}"].factored
    predicted = foretold.bytes
    assert predicted == pytest.approx(made.bytes, rel=0.05)
    bits = foretold.bits_per_weight
    stored = sum(t.bytes for t in made.tensors if len(t.shape) > 1 and not t.name.endswith("_cache"))
    assert bits == pytest.approx(8 * stored / made.parameters, rel=0.01)


def test_rank_multiple_suits_every_type(monkeypatch: pytest.MonkeyPatch, models: tuple[Path, RankPlan]) -> None:
    from lowrank_export.converter.model.source import open_source

    asked: list[int] = []
    monkeypatch.setattr(forecast, "rank_multiple_for", lambda *arguments: asked.append(arguments[-1]) or 32)
    recipe = Recipe(model=str(models[0] / "dense"), method="svd")
    source = open_source(recipe.model, SilentProgress())
    for exports in ([("onnx", "int8")], [("onnx", "int4-mix")], [("onnx", "int4"), ("gguf", "q4_k")], []):
        requests = [requested(*one) for one in exports]
        assert forecast.with_rank_multiple(recipe, source, requests) == recipe
    wide = requested("onnx", "int8", options=OnnxOptions(block_size=128))
    assert forecast.with_rank_multiple(recipe, source, [wide]) == recipe
    assert asked == [32, 64, 256, 1, 128]


def test_head_stored_beside_a_tied_embedding_counts_once(tiny: ModuleType, tmp_path: Path) -> None:
    """Some checkpoints of tied models hold the embedding twice; no export does."""
    from safetensors.torch import load_file, save_file

    tiny.save_dense(tmp_path / "m", "llama")
    recipe = Recipe(model=str(tmp_path / "m"), method="svd", rank_multiple=4)
    with prepared(recipe, device="cpu", progress=SilentProgress()) as job:
        plan = job.plan
    once = forecast_exports(CheckpointReader(tmp_path / "m"), plan)
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    assert forecast_exports(CheckpointReader(tmp_path / "m"), plan) == once
