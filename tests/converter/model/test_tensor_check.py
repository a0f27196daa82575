"""Tensors that a model has no place for, or none for a place of it: refused before any work, in every command."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.families.table import family_to_load
from lowrank_export.converter.model.config_check import check_config
from lowrank_export.converter.model.loading import load
from lowrank_export.exporters.export import export
from lowrank_export.exporters.registry import requested

Tensors = dict[str, Tensor]
TOKENS = torch.arange(1, 20)[None]


def rewrite(folder: Path, change: Callable[[Tensors], Tensors | None], **config: Any) -> Path:
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors) or tensors, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def checked(folder: Path) -> frozenset[str]:
    reader = CheckpointReader(folder)
    return check_config(reader, family_to_load(reader.config, str(folder)))


def linears(tensors: Tensors) -> Iterable[str]:
    return [name for name in tensors if name.endswith("_proj.weight")]


def eight_bit(tensors: Tensors) -> None:
    for name in linears(tensors):
        scale = tensors[name].abs().amax(1)
        tensors[name] = (tensors[name] / scale[:, None] * 127).round().to(torch.int8)
        tensors[name.replace("weight", "SCB")] = scale
        tensors[name.replace("weight", "weight_format")] = torch.tensor(0, dtype=torch.uint8)


def one_eight_bit(tensors: Tensors) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].mul(20).round().to(torch.int8)


def float8(tensors: Tensors) -> None:
    for name in linears(tensors):
        scale = tensors[name].abs().max() / 448
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        tensors[name + "_scale_inv"] = scale.reshape(1, 1)


def packed(tensors: Tensors) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = torch.zeros(tensors[name].numel() // 2, 1, dtype=torch.uint8)
    tensors[name + ".absmax"] = torch.ones(4)


def classifier(tensors: Tensors) -> None:
    del tensors["lm_head.weight"]
    tensors["score.weight"] = torch.randn(2, 64)


def with_more(name: str, *shape: int) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: torch.ones(*shape)})


def without(name: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__delitem__(name)


REFUSED: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "eight bits": (eight_bit, "'model.layers.0.mlp.down_proj.weight' is stored as I8, quantized"),
    "one of eight bits": (one_eight_bit, "'model.layers.1.mlp.up_proj.weight' is stored as I8"),
    "float8": (float8, "is stored as F8_E4M3, quantized .* start from the unquantized checkpoint"),
    "four bits": (packed, "'model.layers.0.mlp.up_proj.weight' is stored as U8"),
    "scales alone": (with_more("model.layers.0.mlp.up_proj.weight_scale", 160), "weight_scale', for which a llama"),
    "classifier": (classifier, "holds 'score.weight': it scores texts .* no language model"),
    "value head": (with_more("v_head.summary.weight", 1, 64), "it scores texts"),
    "adapter": (with_more("model.layers.0.mlp.up_proj.lora_A.weight", 4, 64), "an adapter that is not merged"),
    "bias": (
        with_more("model.layers.1.self_attn.q_proj.bias", 64),
        "holds .*layers.1.self_attn.q_proj.bias', for which",
    ),
    "bias of the head": (with_more("lm_head.bias", 320), "holds 'lm_head.bias'"),
    "query norm": (with_more("model.layers.0.self_attn.q_norm.weight", 16), "self_attn.q_norm.weight'"),
    "router": (with_more("model.layers.0.mlp.gate.weight", 8, 64), "mlp.gate.weight'"),
    "another model": (with_more("vision_tower.patch.weight", 8, 64), "vision_tower.patch.weight'"),
    "no head": (without("lm_head.weight"), "'lm_head.weight' is missing"),
    "no norm": (without("model.layers.1.input_layernorm.weight"), "layers.1.input_layernorm.weight' is missing"),
    "no final norm": (without("model.norm.weight"), "'model.norm.weight' is missing"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_everywhere(kind: str, tiny: ModuleType, tmp_path: Path) -> None:
    """By the check, by loading, and by both exports before they write anything."""
    change, needle = REFUSED[kind]
    tiny.save_dense(tmp_path / "m", "llama", tied=False)
    folder = rewrite(tmp_path / "m", lambda tensors: change(tensors))
    with pytest.raises(InputError, match=needle):
        checked(folder)
    for format in ("gguf", "onnx"):
        with pytest.raises(InputError, match=needle):
            export(folder, tmp_path / "out", requested(format))
        assert not (tmp_path / "out").exists()


def test_biases_that_config_does_not_speak_of(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "m", "llama", tied=False, attention_bias=True)
    assert checked(tmp_path / "m") == frozenset()
    rewrite(tmp_path / "m", lambda tensors: None, attention_bias=False)
    with pytest.raises(InputError, match="and 5 more, for which a llama model as config"):
        checked(tmp_path / "m")


def test_biases_that_config_promises(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "m", "llama", tied=False)
    rewrite(tmp_path / "m", lambda tensors: None, mlp_bias=True)
    with pytest.raises(InputError, match=r"mlp.gate_proj.bias' is missing"):
        checked(tmp_path / "m")


def test_derived_tensors_and_zero_biases_are_left_out(tiny: ModuleType, tmp_path: Path) -> None:
    """They change no file."""
    tiny.save_dense(tmp_path / "m", "llama", tied=False)
    export(tmp_path / "m", tmp_path / "plain.gguf", requested("gguf", "f32"))
    more = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "model.rotary_emb.inv_freq": torch.ones(8),
        "model.layers.1.self_attn.o_proj.bias": torch.zeros(64),
    }
    rewrite(tmp_path / "m", lambda tensors: tensors.update(more))
    assert checked(tmp_path / "m") == set(more)
    export(tmp_path / "m", tmp_path / "more.gguf", requested("gguf", "f32"))
    assert (tmp_path / "more.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


@pytest.mark.parametrize("family", ["opt", "gpt_neox"])
def test_families_that_only_transformers_knows(family: str, tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "m", family, blocks=1)
    load(tmp_path / "m")
    rewrite(tmp_path / "m", with_more("decoder.stranger.weight", 8, 8))
    with pytest.raises(InputError, match=r"holds 'decoder\.stranger\.weight', for which"):
        load(tmp_path / "m")
    tiny.save_dense(tmp_path / "n", family, blocks=1)
    rewrite(tmp_path / "n", lambda tensors: {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()})
    with pytest.raises(InputError, match="stored as F8_E4M3"):
        load(tmp_path / "n")


def outputs(path: Path) -> set[str]:
    return {tensor.name for tensor in GGUFReader(path).tensors if tensor.name.startswith(("output.", "token_embd"))}


def test_another_head_than_the_embedding_unties(tiny: ModuleType, tmp_path: Path) -> None:
    """config.json says tied, the tensors do not: both are written, as transformers reads them."""
    model = tiny.save_dense(tmp_path / "m", "llama", tied=False)
    rewrite(tmp_path / "m", lambda tensors: None, tie_word_embeddings=True)
    assert CheckpointReader(tmp_path / "m").config["tie_word_embeddings"] is False
    with torch.no_grad():
        np.testing.assert_array_equal(load(tmp_path / "m")(TOKENS).logits, model(TOKENS).logits)
    export(tmp_path / "m", tmp_path / "m.gguf", requested("gguf", "f32"))
    assert outputs(tmp_path / "m.gguf") == {"token_embd.weight", "output.weight"}
    export(tmp_path / "m", tmp_path / "onnx", requested("onnx", "fp32"))  # checks itself against torch


@pytest.mark.parametrize("type", [torch.float32, torch.float64])
def test_the_embedding_again_is_tied(type: torch.dtype, tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "m", "llama")
    export(tmp_path / "m", tmp_path / "tied.gguf", requested("gguf", "f32"))
    rewrite(
        tmp_path / "m",
        lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].to(type, copy=True)}),
    )
    assert CheckpointReader(tmp_path / "m").config["tie_word_embeddings"] is True
    export(tmp_path / "m", tmp_path / "again.gguf", requested("gguf", "f32"))
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "tied.gguf").read_bytes()


def test_the_head_alone_is_the_embedding(tiny: ModuleType, tmp_path: Path) -> None:
    """Of a tied model, as transformers reads it; not of another."""
    model = tiny.save_dense(tmp_path / "m", "llama")
    rewrite(tmp_path / "m", lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    reader = CheckpointReader(tmp_path / "m")
    assert "lm_head.weight" not in reader.names and checked(tmp_path / "m") == frozenset()
    torch.testing.assert_close(reader.tensor("model.embed_tokens.weight"), model.model.embed_tokens.weight)
    with torch.no_grad():
        np.testing.assert_array_equal(load(tmp_path / "m")(TOKENS).logits, model(TOKENS).logits)
    rewrite(tmp_path / "m", lambda tensors: None, tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"'model\.embed_tokens\.weight' is missing"):
        checked(tmp_path / "m")
