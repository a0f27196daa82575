"""The table of families: one file each, agreeing with transformers, and the only place that names a family."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

import lowrank_export
from lowrank_export.converter.checkpoint.expert_modules import separate_experts
from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.families.table import (
    FAMILIES,
    built_onnx,
    completed,
    compressed,
    factored_architectures,
    family_of,
    family_to_load,
    gguf_families,
    gguf_inputs,
    gguf_of,
    of_architecture,
    onnx_of,
    traced_onnx,
)

PACKAGE = Path(lowrank_export.__file__).parent
ELSEWHERE = {  # names of other things that are spelled like a family
    "pretokenizers.py",  # llama.cpp's pre-tokenizers
    "vocabulary.py",  # llama.cpp's tokenizer models
    "torch_exporter.py",  # the class under which GenAI runs any decoder
    "genai_tokenizer.py",  # the same, for a tokenizer without a model
    "proof_models.py",  # the architecture of the runtime's own proof
}


def test_each_family_has_a_file_of_its_name() -> None:
    shared = {"__init__", "experts", "family", "parts", "table", "settings"}
    files = {path.stem for path in (PACKAGE / "converter" / "families").glob("*.py")} - shared
    assert files == set(FAMILIES)
    assert all(name == family.model_type for name, family in FAMILIES.items())


def test_no_other_file_names_a_family() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).parts
        if place[0] not in ("converter", "exporters", "runtime_tests", "cli.py") or "families" in place:
            continue
        if path.name in ELSEWHERE:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in FAMILIES:
                found.append(f"{path}:{node.lineno}: {node.value}")
    assert not found


@pytest.mark.parametrize("name", FAMILIES)
def test_places_are_those_of_transformers(name: str, tiny: ModuleType) -> None:
    """Every path of the table is a module of the model, and every linear and norm of a block is in the table."""
    family = FAMILIES[name].of(tiny.config(name).to_dict())
    with torch.device("meta"):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(tiny.config(name))
    separate_experts(model, family)
    for path in (family.blocks, family.embedding, family.norm, family.head, family.rotary):
        if path:
            model.get_submodule(path)
    if not family.groups:
        assert not family.compressed
        return
    block = model.get_submodule(f"{family.blocks}.0")
    weights = {name.removesuffix(".weight") for name, _ in block.named_parameters() if name.endswith(".weight")}
    assert weights == {*family.linears, *family.norms}
    stored = {name.partition(".")[0] for name in dict(model.named_parameters())}
    assert stored <= {path.partition(".")[0] for path in (family.blocks, family.head)}


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.groups])
@pytest.mark.parametrize("on", [True, False])
def test_biases_are_those_of_transformers(name: str, on: bool, tiny: ModuleType) -> None:
    """With the keys of the table switched on, or off, exactly the linears and norms that it gives a bias have one."""
    from transformers import AutoModelForCausalLM

    family = FAMILIES[name]
    switches = {switch for switch in family.biases.values() if switch}
    assert switches <= set(family.settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny.config(name, **dict.fromkeys(switches, on)))
    block = model.get_submodule(f"{family.blocks}.0")
    biased = {name.removesuffix(".bias") for name, _ in block.named_parameters() if name.endswith(".bias")}
    linears = {linear for linear, switch in family.biases.items() if on or not switch}
    assert biased == linears | (set(family.norms) if family.norm_biases else set())


@pytest.mark.parametrize("name", FAMILIES)
def test_settings_and_defaults_are_keys_of_transformers(name: str, tiny: ModuleType) -> None:
    """What transformers assumes where config.json is silent is what the table says."""
    from transformers import AutoConfig

    plain = AutoConfig.for_model(name)
    for key, value in FAMILIES[name].defaults.items():
        assert getattr(plain, key) == value
    if "num_key_value_heads" in FAMILIES[name].settings and "num_key_value_heads" not in FAMILIES[name].defaults:
        assert getattr(plain, "num_key_value_heads", plain.num_attention_heads) == plain.num_attention_heads


def test_lookups() -> None:
    assert set(compressed()) == {name for name, family in FAMILIES.items() if family.compressed}
    assert set(gguf_families()) == {name for name, family in FAMILIES.items() if family.gguf}
    assert gguf_inputs() == ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
    assert factored_architectures()[:3] == ("llama", "qwen2", "qwen3")
    assert {*built_onnx(), *traced_onnx()} == set(FAMILIES)
    assert of_architecture("bert") is None
    assert completed({"model_type": "qwen3", "head_dim": None}) == {
        **FAMILIES["qwen3"].defaults,
        "model_type": "qwen3",
        "head_dim": None,
    }
    assert completed({"model_type": "bloom"}) == {"model_type": "bloom"}
    assert of_architecture("qwen3") is gguf_of({"model_type": "qwen3"})
    for name, family in FAMILIES.items():
        config = completed({"model_type": name})
        found = family_to_load(config, "here")
        assert found is family if family.experts is None else found == family.of(config)
        assert onnx_of(config) is family.onnx
        if not family.compressed:
            with pytest.raises(InputError, match="not supported; supported: llama, mistral"):
                family_of(config, "here")
    for ask in (gguf_of, onnx_of, lambda config: family_to_load(config, "here")):
        with pytest.raises(InputError, match="bloom"):
            ask({"model_type": "bloom"})


def test_the_module_is_found_by_its_name() -> None:
    assert importlib.util.find_spec("lowrank_export.converter.families.llama") is not None
