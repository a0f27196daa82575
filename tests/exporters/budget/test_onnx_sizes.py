"""Sizes of ONNX folders: bounds of every family, choices that are kept in the graph, budgets met and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from lowrank_export.converter.budget.forms import Form
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import UsageError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.core.recipe import Recipe, make_recipe, read_recipe
from lowrank_export.converter.families.table import FAMILIES
from lowrank_export.converter.model.loading import load
from lowrank_export.converter.model.source import open_source
from lowrank_export.converter.pipeline import compress
from lowrank_export.exporters.budget.onnx_format import OnnxFormat
from lowrank_export.exporters.budget.sized import Sized, sized
from lowrank_export.exporters.chosen import CHOSEN
from lowrank_export.exporters.export import export
from lowrank_export.exporters.onnx.session import open_decoder
from lowrank_export.exporters.onnx.weights.encoded import encode_model
from lowrank_export.exporters.onnx.weights.quantize import dequantize, quantize, searched_values
from lowrank_export.exporters.onnx.weights.types import CODES, OnnxOptions, chosen_types
from lowrank_export.exporters.registry import requested

QUICK = {"windows": 4, "window_length": 32, "held_out": 1, "gradient_windows": 2}
WIDE = {"hidden_size": 128, "intermediate_size": 256}
ALL = OnnxOptions(rounding="aware", factors="all")  # a model this narrow would have hardly a factor
REQUEST = requested("onnx", CHOSEN, options=ALL)
UNLIKE = {  # linear -> form, in every block: what shares an input is alike in part, and never throughout
    "q_proj": "int8",
    "k_proj": "int4",
    "v_proj": "int8",
    "o_proj": "24 int8 int4",
    "gate_proj": "24 uint4 int8",
    "up_proj": "24 int8 int8",
    "down_proj": "24 int4 int8",
}


def bits_of_nodes(folder: Path) -> dict[str, int]:
    """Node -> bits of its codes."""
    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    return {
        node.name: next(attribute.i for attribute in node.attribute if attribute.name == "bits")
        for node in graph.node
        if node.op_type in ("MatMulNBits", "GatherBlockQuantized")
    }


def logits_of(folder: Path, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    decoder = open_decoder(folder, threads=1)
    return decoder.run(tokens, decoder.empty_cache, keep_cache=False)[0]


def assert_computes_what_is_stored(checkpoint: Path, folder: Path, options: OnnxOptions) -> None:
    """Logits are those of the checkpoint with every matrix rounded to the type of its recipe, in torch."""
    model = load(checkpoint, dtype=torch.float32)
    chosen = chosen_types(read_recipe(checkpoint / "recipe.yaml").forms)
    encode_model(model, CHOSEN, replace(options, chosen=chosen), {})
    tokens = np.random.default_rng(3).integers(0, 300, 24, dtype=np.int32)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()
    np.testing.assert_allclose(logits_of(folder, tokens), expected, atol=2e-4)


def choice_of(family: str, forms: dict[str, str], embedding: str, head: str | None = None) -> dict[str, str]:
    """A choice for two blocks of a tiny model."""
    known = FAMILIES[family]
    linears = {known.linear_name(block, path): path.rpartition(".")[2] for block in (0, 1) for path in known.linears}
    outside = {known.embedding: embedding, **({} if head is None else {known.head: head})}
    return {**{name: forms.get(last, "int4") for name, last in linears.items()}, **outside}


@pytest.mark.parametrize(
    ("family", "head", "forms"),
    [
        ("llama", None, UNLIKE),
        ("qwen2", "int8", {**UNLIKE, "k_proj": "24 int4 int8", "q_proj": "int4", "gate_proj": "int4"}),
        ("qwen3", "int4", {**UNLIKE, "q_proj": "24 int8 int4", "v_proj": "24 int4 uint4", "up_proj": "uint4"}),
        ("phi3", "int8", {"qkv_proj": "24 int4 int8", "gate_up_proj": "int8", "o_proj": "int4"}),
        ("gemma", None, {"q_proj": "int4", "k_proj": "int4", "v_proj": "uint4", "o_proj": "int8"}),
        ("granite", None, {"q_proj": "24 int8 int8", "k_proj": "24 int8 int8"}),
    ],
)
def test_every_choice_is_what_the_graph_computes(
    family: str, head: str | None, forms: dict[str, str], tmp_path: Path, tiny: ModuleType
) -> None:
    options = OnnxOptions(symmetric=family != "qwen2", accuracy_level=0, factors="auto")
    choice = choice_of(family, forms, "int4", head)
    tiny.save_dense(tmp_path / "dense", family, tied=head is None)
    tiny.save_chosen(tmp_path / "ckpt", family, choice, tied=head is None)
    recipe = read_recipe(tmp_path / "ckpt" / "recipe.yaml")
    made = export(tmp_path / "ckpt", tmp_path / "out", requested("onnx", CHOSEN, options=options))
    predicted = OnnxFormat(options).size(CheckpointReader(tmp_path / "dense"), "ckpt", recipe.method)
    bound = predicted(recipe.forms, recipe.to_yaml())
    assert made.bytes <= bound < made.bytes + 25_000

    assert_computes_what_is_stored(tmp_path / "ckpt", tmp_path / "out", options)
    encoded = bits_of_nodes(tmp_path / "out")
    assert set(encoded.values()) == {4, 8}
    assert encoded["/model/embed_tokens/GatherBlockQuantized"] == 4
    assert encoded["/lm_head/MatMulNBits"] == (8 if head == "int8" else 4)
    for module, form in recipe.forms.items():
        if form.rank is None and ".layers." in module:
            stem = "/" + module.replace(".", "/").replace("/layers/", "/layers.").replace("self_attn", "attn")
            bits = encoded.get(f"{stem}/MatMulNBits", encoded.get(f"{stem}/MatMul/MatMulNBits"))
            assert bits is None or bits == CODES[form.types[0]], "None: joined with its neighbors"


def test_a_choice_in_a_traced_graph(tmp_path: Path, tiny: ModuleType) -> None:
    model = tiny.save_dense(tmp_path / "dense", "stablelm")
    kinds = (torch.nn.Linear, torch.nn.Embedding)
    matrices = [name for name, module in model.named_modules() if isinstance(module, kinds) and name != "lm_head"]
    choice = {name: ("int8", "int4", "uint4")[index % 3] for index, name in enumerate(matrices)}
    options = OnnxOptions(accuracy_level=0)
    tiny.save_chosen(tmp_path / "ckpt", "stablelm", choice)
    export(tmp_path / "ckpt", tmp_path / "out", requested("onnx", CHOSEN, options=options))
    assert_computes_what_is_stored(tmp_path / "ckpt", tmp_path / "out", options)
    assert sorted(set(bits_of_nodes(tmp_path / "out").values())) == [4, 8]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "model"
    tiny.save_dense(folder, "llama", **WIDE)
    return folder


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("statistics")


def recipe(dense: Path, **size: object) -> Recipe:
    return make_recipe({"model": str(dense), **QUICK, **size}, "test")


def choose(dense: Path, statistics: Path, request: Any = REQUEST, **size: object) -> Sized:
    asked = recipe(dense, **size)
    source = open_source(asked.model, SilentProgress())
    return sized(asked, source, statistics, request, device="cpu", progress=SilentProgress())


def smallest(dense: Path, statistics: Path, request: Any = REQUEST) -> int:
    with pytest.raises(UsageError, match="the smallest file of this model takes") as refused:
        choose(dense, statistics, request, max_bytes=1)
    return int(str(refused.value).split("takes ")[1].split(" bytes")[0])


def test_a_size_becomes_a_folder_of_at_most_that_many_bytes(dense: Path, statistics: Path, tmp_path: Path) -> None:
    budget = smallest(dense, statistics) + 40_000
    chosen = choose(dense, statistics, max_bytes=budget)
    forms = chosen.found.recipe.forms
    assert {type for form in forms.values() for type in form.types} <= set(CODES)
    assert any(form.rank is not None for form in forms.values())
    assert chosen.found.bytes <= budget
    compress(chosen.found.recipe, tmp_path / "ckpt", statistics=statistics)
    made = [export(tmp_path / "ckpt", tmp_path / name, REQUEST) for name in ("a", "b")]
    assert made[0].bytes <= chosen.found.bytes and made[0].quantization == CHOSEN
    assert made[0].bytes >= 0.88 * budget, "of so small a model the graph is a large part, and bounded from above"
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    bits = bits_of_nodes(tmp_path / "a")
    for module, form in forms.items():
        if form.rank is not None:
            stem = "/" + module.replace(".", "/").replace("/layers/", "/layers.").replace("self_attn", "attn")
            assert bits[f"{stem}/lowrank_u/MatMulNBits"] == CODES[form.types[0]]


def test_the_smallest_that_is_named_is_met_and_more_never_predicts_more_loss(dense: Path, statistics: Path) -> None:
    least = smallest(dense, statistics)
    losses = [choose(dense, statistics, max_bytes=least + more).found.loss for more in (0, 5_000, 40_000, 10**6)]
    assert losses == sorted(losses, reverse=True)
    with pytest.raises(UsageError, match="smallest"):
        choose(dense, statistics, max_bytes=least - 32)


def test_plain_types_are_held_against_the_choice(dense: Path, statistics: Path) -> None:
    chosen = choose(dense, statistics, max_bytes=10**6)
    assert chosen.plain is not None and (chosen.plain.type, chosen.plain.rest) == ("int8", "int8")
    assert REQUEST.plain("int8", "int8", tied=True) == requested("onnx", "int8", options=ALL)


def test_costs_are_kept_by_encoding(dense: Path, statistics: Path) -> None:
    choose(dense, statistics, max_bytes=10**6)
    choose(dense, statistics, requested("onnx", CHOSEN, options=OnnxOptions(64, symmetric=False)), max_bytes=10**6)
    names = {path.name for path in statistics.glob("costs-onnx-*")}
    assert names >= {"costs-onnx-32-2.json", "costs-onnx-64-asymmetric-2.json"}


def test_factors_have_to_pay_for_their_matmul() -> None:
    auto, every = OnnxFormat(OnnxOptions()), OnnxFormat(ALL)
    narrow, wide = Form(("int4", "int4"), 32), Form(("int4", "int4"), 256)
    assert not auto.factors_pay((192, 576), narrow), "74 kB in all: no rank saves what a matmul takes"
    assert auto.factors_pay((1536, 576), Form(("int4", "int4"), 320))
    assert not auto.factors_pay((1536, 576), Form(("int4", "int4"), 384))
    assert auto.factors_pay((2048, 2048), wide) and every.factors_pay((192, 576), narrow)


def test_a_choice_of_another_format_is_refused(tmp_path: Path, tiny: ModuleType) -> None:
    tiny.save_chosen(tmp_path / "gguf", "llama", choice_of("llama", {}, "q8_0"))
    tiny.save_chosen(tmp_path / "onnx", "llama", choice_of("llama", {}, "int8"))
    for format in ("gguf", "onnx"):
        with pytest.raises(UsageError, match=f"no type of {format}: a choice is of the one format it was made for"):
            export(tmp_path / {"gguf": "onnx", "onnx": "gguf"}[format], tmp_path / "out", requested(format, CHOSEN))
        with pytest.raises(UsageError, match="choice is of the one format"):
            requested(format, CHOSEN).check_choice({"lm_head": Form(("int8" if format == "gguf" else "q8_0",))})
    tiny.save_dense(tmp_path / "dense", "llama")
    with pytest.raises(UsageError, match="was not made for a size"):
        export(tmp_path / "dense", tmp_path / "out", requested("onnx", CHOSEN))


def test_searched_values_are_no_worse_than_plain_ones() -> None:
    weights = torch.randn(6, 70, generator=torch.Generator().manual_seed(0))
    importance = torch.rand(70, generator=torch.Generator().manual_seed(1))
    for symmetric in (True, False):
        format = OnnxOptions(16, symmetric).format("int4")
        plain, searched = dequantize(quantize(weights, format)), searched_values(weights, importance, format)
        errors = [float(((weights - values).square() * importance).sum()) for values in (plain, searched)]
        assert errors[1] < errors[0]
