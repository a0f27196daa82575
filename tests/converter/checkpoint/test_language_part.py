"""The language model of a vision-language checkpoint is read as if it were alone."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from lowrank_export.converter.checkpoint.language_part import language_config, whole_config, whole_name
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.families.settings import check_settings
from lowrank_export.converter.families.table import FAMILIES, gguf_of
from lowrank_export.converter.families.vision.table import VISION_LANGUAGE
from lowrank_export.converter.model.loading import load
from lowrank_export.converter.model.source import open_source
from lowrank_export.converter.model.tokens import read_tokens
from lowrank_export.exporters.gguf.metadata import read_hyperparameters

WEIGHTS = "model.safetensors"
TOKENS = torch.arange(1, 20)[None]


def rewrite(folder: Path, **values: Any) -> None:
    """Set keys of config.json; None takes one away."""
    file = folder / "config.json"
    said = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))


def text_config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["text_config"]
    return found


def rename(folder: Path, *pairs: tuple[str, str]) -> None:
    """Put other beginnings in the place of those of tensors' names."""
    tensors = load_file(folder / WEIGHTS)
    for before, after in pairs:
        tensors = {after + n.removeprefix(before) if n.startswith(before) else n: t for n, t in tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.fixture
def llava(tmp_path: Path, tiny: ModuleType, tiny_vision: ModuleType) -> Path:
    tiny_vision.save(tmp_path / "m", tiny, "llava", "llama", tied=False)
    return tmp_path / "m"


def opened(folder: Path) -> CheckpointReader:
    return open_source(str(folder), SilentProgress()).reader()


def test_it_has_the_names_of_its_family(llava: Path) -> None:
    reader = opened(llava)
    assert {"lm_head.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"} <= set(reader.names)
    assert not [name for name in reader.names if "vision" in name or "projector" in name]
    assert {name.partition(".")[0] for name in reader.beside} == {"vision_tower", "multi_modal_projector"}
    stored = load_file(llava / WEIGHTS)
    assert len(stored) == len(reader.names) + len(reader.beside)
    assert all(stored[name].shape == shape for name, shape in reader.beside.items())
    assert reader.beside_bytes == sum(stored[name].numel() * 4 for name in reader.beside)
    assert all(stored[name].equal(reader.tensor_beside(name)) for name in reader.beside)
    assert reader.config["model_type"] == "llama" and reader.config["hidden_size"] == 64


def test_it_computes_what_it_computes_inside(llava: Path, tiny_vision: ModuleType) -> None:
    with torch.no_grad():
        torch.testing.assert_close(load(llava)(TOKENS).logits, tiny_vision.load(llava)(input_ids=TOKENS).logits)


@pytest.mark.parametrize(
    "pairs",
    [
        [("language_model.lm_head.", "lm_head."), ("language_model.model.", "model.language_model.")],
        [("vision_tower.", "vision_tower.vision_model."), ("multi_modal_projector", "model.multi_modal_projector")],
    ],
)
def test_layouts_of_other_versions(llava: Path, pairs: list[tuple[str, str]], tiny_vision: ModuleType) -> None:
    with torch.no_grad():
        before = load(llava)(TOKENS).logits
        rename(llava, *pairs)
        assert opened(llava).around is VISION_LANGUAGE["llava"]
        assert load(llava)(TOKENS).logits.equal(before)
    tiny_vision.load(llava)


def test_what_a_text_config_leaves_out(llava: Path) -> None:
    """LLaVA 1.5's says next to nothing: the rest is as transformers' class of the family has it."""
    kept = ("hidden_size", "vocab_size", "num_hidden_layers", "intermediate_size", "num_key_value_heads", "head_dim")
    said = text_config(llava)
    rewrite(llava, text_config={key: said[key] for key in (*kept, "num_attention_heads")})
    reader = opened(llava)
    assert (reader.config["rms_norm_eps"], reader.config["max_position_embeddings"]) == (1e-6, 2048)
    assert reader.config["hidden_act"] == "silu" and reader.config["tie_word_embeddings"] is False
    del said["num_attention_heads"]
    rewrite(llava, text_config=said)
    with pytest.raises(InputError, match=r"but config\.json says"):
        load(llava)


def test_keys_of_another_class_are_passed_over(tmp_path: Path, tiny: ModuleType, tiny_vision: ModuleType) -> None:
    """SmolVLM's say what its first class read, and transformers' does not."""
    tiny_vision.save(tmp_path, tiny, "smolvlm", "llama", tied=False)
    strange = {"perceiver_config": {"model_type": "vllama3"}, "pixel_shuffle_factor": 4, "is_llama_config": True}
    strange |= {"qk_layer_norms": False, "neftune_noise_alpha": 0.0, "_flash_attn_2_enabled": True}
    rewrite(tmp_path, text_config={**text_config(tmp_path), **strange}, vocab_size=320)
    load(tmp_path)
    rewrite(tmp_path, text_config={**text_config(tmp_path), "attention_multiplier": 0.5})
    with pytest.raises(InputError, match=r"'attention_multiplier': 0.5, which no llama model here reads"):
        load(tmp_path)


def test_tokens_that_only_the_text_config_names(llava: Path) -> None:
    for file in ("generation_config.json", "special_tokens_map.json", "tokenizer_config.json"):
        (llava / file).unlink(missing_ok=True)
    rewrite(llava, eos_token_id=None, text_config={**text_config(llava), "eos_token_id": 7})
    assert read_tokens(llava).ends == (7,)


def without(*beginnings: str) -> Any:
    def take(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(beginnings)}
        save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})

    return take


def with_text(**values: Any) -> Any:
    return lambda folder: rewrite(folder, text_config={**text_config(folder), **values})


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda m: rewrite(m, model_type="qwen9_vl"), "'qwen9_vl' is not supported; supported: .*llava, gemma3"),
        (lambda m: rewrite(m, text_config=None), "text_config is None, no configuration of a language model"),
        (lambda m: rewrite(m, text_config=[1]), r"text_config is \[1\], no configuration"),
        (with_text(model_type="bloom"), "a llava model around a language model of family 'bloom' is not supported"),
        (with_text(model_type=3), "a language model of family 3 is not supported; supported: llama, mistral"),
        (without("vision_tower."), "tensor 'model.vision_tower.embeddings.class_embedding' is missing"),
        (without("multi_modal_projector.linear_2"), "'model.multi_modal_projector.linear_2.weight' is missing"),
        (lambda m: rewrite(m, vision_config={"model_type": "clip_vision_model"}), "has shape .*config.json says"),
        (lambda m: rewrite(m, vision_config={"model_type": "nothing"}), "transformers cannot build this model"),
        (lambda m: rewrite(m, vision_config={"depth": 2**70}), "depth of vision_config is 1180591620717411303424, but"),
        (with_text(num_hidden_layers=10**9), "num_hidden_layers of text_config is 1000000000, but there are"),
        (lambda m: rewrite(m, vision_config=5), "transformers cannot build this model"),
    ],
)
def test_refused_when_it_is_opened(llava: Path, damage: Any, line: str) -> None:
    damage(llava)
    with pytest.raises(InputError, match=line) as refused:
        open_source(str(llava), SilentProgress())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (with_text(hidden_size="wide"), "hidden_size is 'wide'"),
        (with_text(num_hidden_layers=3), "holds 2 blocks, but config.json says 3"),
        (without("language_model.model.layers.1.self_attn.q_proj"), "q_proj.weight' is missing"),
        (lambda m: rename(m, ("vision_tower.pre", "audio_tower.pre")), "'audio_tower.pre_layrnorm.bias'.* no place"),
    ],
)
def test_refused_when_the_language_model_is_read(llava: Path, damage: Any, line: str) -> None:
    damage(llava)
    with pytest.raises(InputError, match=line):
        load(llava)


def test_configurations_lead_back() -> None:
    of = VISION_LANGUAGE["llava"]
    whole = {"model_type": "llava", "text_config": {"model_type": "llama", "hidden_size": 8}, "image_seq_length": 4}
    ranks = {"model.layers.0.mlp.up_proj": 3, "lm_head": 2}
    text = language_config(whole, of, "here") | {"dtype": "float16", "quantization_config": {"ranks": ranks}}
    back = whole_config(whole, text, of)
    assert back["quantization_config"] == {"ranks": {"model.language_model.layers.0.mlp.up_proj": 3, "lm_head": 2}}
    assert language_config(back, of, "here")["quantization_config"] == {"ranks": ranks}
    assert (back["dtype"], back["image_seq_length"], back["tie_word_embeddings"]) == ("float16", 4, False)
    assert whole_name("model.norm.weight", of) == "model.language_model.norm.weight"
    assert whole_name("lm_head.weight", of) == "lm_head.weight"


REAL = {
    "llava": {
        "model_type": "llava",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5",
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": 32064,
        },
    },
    "gemma3": {
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
    },
    "idefics3": {
        "model_type": "idefics3",
        "text_config": {
            "architectures": ["VLlama3ForCausalLM"],
            "head_dim": 64,
            "hidden_size": 576,
            "is_llama_config": True,
            "max_position_embeddings": 8192,
            "model_type": "llama",
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "perceiver_config": {"model_type": "vllama3", "resampler_depth": 6},
            "pixel_shuffle_factor": 4,
            "rope_scaling": None,
            "rope_theta": 100000,
        },
        "tie_word_embeddings": False,
    },
    "qwen2_5_vl": {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "eos_token_id": 151645,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "max_position_embeddings": 128000,
        "max_window_layers": 70,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 16,
        "num_hidden_layers": 36,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vision_config": {"model_type": "qwen2_5_vl", "out_hidden_size": 2048},
        "vocab_size": 151936,
    },
}
"""As the hub's folders say it, for the most part."""


@pytest.mark.parametrize("name", REAL)
def test_silent_configurations_are_those_of_transformers(name: str) -> None:
    of, where = VISION_LANGUAGE[name], "here"
    found = language_config(REAL[name], of, where)
    whole = AutoConfig.for_model(**deepcopy(REAL[name]))
    family = FAMILIES[found["model_type"]]
    check_settings(found, family, where)
    assert found["tie_word_embeddings"] == whole.tie_word_embeddings
    for key in family.settings:
        if found.get(key) is not None and not any(word in key for word in ("rope", "tie_", "sliding_window")):
            assert found[key] == getattr(whole.text_config, key), key
    hyper, text = read_hyperparameters(found), whole.text_config
    assert (hyper.blocks, hyper.sliding_window) == (text.num_hidden_layers, getattr(text, "sliding_window", None))


def test_a_configuration_that_says_all_in_one(tmp_path: Path, tiny: ModuleType, tiny_vision: ModuleType) -> None:
    """The hub's of Qwen2.5-VL have no `text_config`; positions of text are those of a Qwen 2."""
    tiny_vision.save(tmp_path, tiny, "qwen2_5_vl", "qwen2")
    before, whole = load(tmp_path)(TOKENS).logits, tiny_vision.load(tmp_path)
    text = text_config(tmp_path)
    rewrite(tmp_path, **{**text, "model_type": "qwen2_5_vl", "text_config": None})
    assert load(tmp_path)(TOKENS).logits.equal(before)
    torch.testing.assert_close(
        tiny_vision.answer(tiny_vision.load(tmp_path), "qwen2_5_vl"), tiny_vision.answer(whole, "qwen2_5_vl")
    )
    reader = opened(tmp_path)
    assert gguf_of(reader.config).architecture == "qwen2vl"
    assert read_hyperparameters(reader.config).keys == {"rope.dimension_sections": [2, 3, 3, 0]}
