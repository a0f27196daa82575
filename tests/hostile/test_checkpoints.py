"""Model folders: config.json, index, factors, tokenizer, links, and code that must not run."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

Copy = Callable[[str], Path]
Refused = Callable[..., str]
DEEP = "[" * 100_000
HUGE = 10**12
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
NO_NUMBERS: tuple[Any, ...] = (0, -1, "64", 6.5, True, [64], {"a": 1}, 10**400)


def plan(folder: Path) -> list[Any]:
    """The command that builds the model's skeleton and reads no text."""
    return ["plan", "--model", folder, "--method", "svd", "--rank-multiple", 4]


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("key", SIZES)
def test_sizes_that_are_none(copied: Copy, refused: Refused, key: str, value: Any) -> None:
    change((folder := copied("dense")) / "config.json", **{key: value})
    refused(*plan(folder), code=3, needle=f"{key} is")


@pytest.mark.parametrize("factor", [2, 3, 10**6, HUGE])
@pytest.mark.parametrize("key", SIZES)
def test_sizes_of_another_model(copied: Copy, refused: Refused, key: str, factor: int) -> None:
    """Nothing is built in a size that no tensor has."""
    path = (folder := copied("dense")) / "config.json"
    value = json.loads(path.read_text())[key] * factor
    change(path, **{key: value})
    if key == "max_position_embeddings" and value < 2**31:
        return  # a promise, not a size
    refused(*plan(folder), code=3, needle="config.json says")


CONFIGS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "not readable as JSON"),
    "list": ("[]", "expected a JSON object"),
    "null": ("null", "expected a JSON object"),
    "nested": (DEEP, "nested too deeply"),
    "digits": ('{"hidden_size": ' + "9" * 100_000 + "}", "not readable as JSON"),
    "bytes": (b"\xff\xfe{}", "not readable as UTF-8"),
    "half": ('{"model_type": "llama"', "not readable as JSON"),
    "NUL": ('{"model_type": "lla\x00ma"}', "not readable as JSON"),
    "no family": ("{}", "model family 'unknown' is not supported"),
    "unknown family": ('{"model_type": "gpt9"}', "model family 'gpt9' is not supported"),
    "family is a list": ('{"model_type": ["llama"]}', "is not supported"),
    "family steers": ('{"model_type": "\\u001b[2J"}', "is not supported"),
    "long family": (json.dumps({"model_type": "x" * 10**6}), "is not supported"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config(copied: Copy, refused: Refused, case: str) -> None:
    content, needle = CONFIGS[case]
    data = content if isinstance(content, bytes) else content.encode()
    (folder := copied("dense")).joinpath("config.json").write_bytes(data)
    refused(*plan(folder), code=3, needle=needle)


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_parameters": {"rope_type": "none of them"}},
        {"rope_parameters": []},
        {"rope_parameters": {"rope_type": "yarn", "factor": "x"}},
        {"rope_parameters": {"rope_type": "llama3"}},
        {"rope_parameters": {"rope_theta": "x", "rope_type": "default"}},
        {"hidden_act": "none of them"},
        {"hidden_act": ["silu"]},
        {"rms_norm_eps": "x"},
        {"attention_bias": True},
        {"dtype": "float99"},
        {"quantization_config": {"quant_method": "gptq"}},
        {"quantization_config": {"quant_method": ["x"] * 1000}},
        {"quantization_config": [1]},
        {"quantization_config": "lowrank"},
        {"quantization_config": "x" * 10**6},
    ],
    ids=lambda keys: json.dumps(keys)[:50],
)
def test_keys_that_transformers_refuses(models: Path, copied: Copy, refused: Refused, keys: dict[str, Any]) -> None:
    change((folder := copied("dense")) / "config.json", **keys)
    read = ["--calibration", models / "text.txt", "--windows", 2, "--window-length", 32, "--rank-multiple", 4]
    refused("plan", "--model", folder, *read, code=3, needle=str(folder))


INDEXES: dict[str, tuple[Any, str]] = {
    "list": ([], "expected a JSON object"),
    "no map": ({}, "no weight_map"),
    "map is a list": ({"weight_map": ["x"]}, "no weight_map"),
    "map is text": ({"weight_map": "model.safetensors"}, "no weight_map"),
    **{
        f"shard {name!r:.30}": ({"weight_map": {"x": name}}, "is not a file of this folder")
        for name in (
            "../model.safetensors",
            "/etc/passwd",
            "..",
            ".",
            "",
            "sub/../model.safetensors",
            "./model.safetensors",
            "model.safetensors/",
            "model.safetensors\0",
            "x" * 5000,
            "~/x",
            "C:\\x",
            None,
            7,
            ["model.safetensors"],
            {"a": "model.safetensors"},
            "\ud800",
            "\x1b[2J",
            "sub",
        )
    },
}


@pytest.mark.parametrize("case", INDEXES)
def test_indexes(copied: Copy, refused: Refused, case: str) -> None:
    content, needle = INDEXES[case]
    folder = copied("dense")
    (folder / "sub").mkdir()
    (folder.parent / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    refused("inspect", folder, code=3, needle=needle)


def test_a_tensor_in_two_shards(copied: Copy, refused: Refused) -> None:
    folder = copied("dense")
    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
    )
    refused("inspect", folder, code=3, needle="and so does a.safetensors")


RANKS: dict[str, tuple[Any, str]] = {
    "no ranks of a list": ([], "holds no ranks"),
    "text": ("x", "holds no ranks"),
    "rank is text": ({"model.layers.0.mlp.up_proj": "16"}, "holds no ranks"),
    "rank is a boolean": ({"model.layers.0.mlp.up_proj": True}, "holds no ranks"),
    "rank is nothing": ({"model.layers.0.mlp.up_proj": 0}, "holds no ranks"),
    "rank is negative": ({"model.layers.0.mlp.up_proj": -16}, "holds no ranks"),
    "another rank": ({"model.layers.0.mlp.up_proj": 17}, "but rank 17"),
    "a huge rank": ({"model.layers.0.mlp.up_proj": HUGE}, f"but rank {HUGE}"),
    "no such linear": ({"model.layers.9.mlp.up_proj": 16}, "is missing"),
    "outside": ({"../../x": 16}, "is missing"),
    "the model": ({"": 16}, "is missing"),
}


@pytest.mark.parametrize("layout", ["factored", "pivot"])
@pytest.mark.parametrize("case", RANKS)
def test_ranks(copied: Copy, refused: Refused, layout: str, case: str) -> None:
    ranks, needle = RANKS[case]
    path = (folder := copied(layout)) / "config.json"
    change(path, quantization_config={**json.loads(path.read_text())["quantization_config"], "ranks": ranks})
    refused("inspect", folder, code=3, needle=needle)


@pytest.mark.parametrize("layout", ["pivots", "", 7, ["pivot"], None, "x" * 10**6])
def test_layouts(copied: Copy, refused: Refused, layout: Any) -> None:
    path = (folder := copied("factored")) / "config.json"
    change(path, quantization_config={**json.loads(path.read_text())["quantization_config"], "layout": layout})
    refused("inspect", folder, code=3, needle="this version reads")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"])
def test_weights_that_are_no_numbers(models: Path, copied: Copy, refused: Refused, name: str, value: float) -> None:
    """The line names the tensor."""
    tensors = load_file((folder := copied("dense")) / "model.safetensors")
    tensors[name][3, 5] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    text = ["--calibration", models / "text.txt", "--windows", 2, "--window-length", 32, "--rank-multiple", 4]
    refused("compress", "--model", folder, *text, "--out", "out", code=3, needle=f"{name} holds NaN or Inf")


def links(folder: Path, outside: Path) -> Iterable[Path]:
    """Files of a model folder, one after the other a link to somewhere else."""
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md", "LICENSE"):
        file = folder / name
        content = file.read_bytes() if file.exists() else b"secret"
        file.unlink(missing_ok=True)
        (outside / name).write_bytes(content)
        file.symlink_to(outside / name)
        yield file
        file.unlink()
        file.write_bytes(content)


def test_links_out_of_the_folder(copied: Copy, refused: Refused, tmp_path: Path) -> None:
    folder, outside = copied("dense"), tmp_path / "outside"
    outside.mkdir()
    for link in links(folder, outside):
        for command in (["inspect", folder], plan(folder), ["export", folder, "--out", "out", "--gguf-type", "f32"]):
            refused(*command, code=3, needle=f"{link}: is a link that leads out of its folder")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.jinja").symlink_to("chat_template.jinja")  # to itself
    (folder / "additional_chat_templates").symlink_to(outside)
    refused(*plan(folder), code=3, needle="additional_chat_templates: is a link")


def test_links_of_the_hub_cache(copied: Copy, tmp_path: Path) -> None:
    """What huggingface_hub makes is read; what only looks like it is not."""
    from lowrank_export.converter.checkpoint.reader import CheckpointReader
    from lowrank_export.converter.core.errors import InputError

    sound, cache = copied("dense"), tmp_path / "models--a--b"
    (snapshot := cache / "snapshots" / "1234").mkdir(parents=True)
    (cache / "blobs").mkdir()
    for file in sound.iterdir():
        (cache / "blobs" / f"b-{file.name}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(cache / "blobs" / f"b-{file.name}", snapshot))
    assert CheckpointReader(snapshot).names
    (snapshot / "LICENSE").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="LICENSE: is a link"):
        CheckpointReader(snapshot)


TOKENIZERS: dict[str, dict[str, str]] = {
    "none": {"tokenizer.json": "", "tokenizer_config.json": ""},
    "list": {"tokenizer.json": "[]"},
    "null": {"tokenizer.json": "null"},
    "nested": {"tokenizer.json": DEEP},
    "bytes": {"tokenizer.json": "\x00\x01"},
    "no model": {"tokenizer.json": '{"version": "1.0"}'},
    "unknown model": {"tokenizer.json": '{"model": {"type": "Nothing"}}'},
    "empty vocabulary": {"tokenizer.json": '{"model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}'},
    "config nested": {"tokenizer_config.json": DEEP},
    "config is a list": {"tokenizer_config.json": "[]"},
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_tokenizers(models: Path, copied: Copy, refused: Refused, case: str) -> None:
    folder = copied("dense")
    for name, content in TOKENIZERS[case].items():
        (folder / name).write_text(content, encoding="utf-8")
    text = ["--calibration", models / "text.txt", "--windows", 2, "--window-length", 32, "--rank-multiple", 4]
    refused("plan", "--model", folder, *text, code=3, needle="tokenizer")


def test_a_tokenizer_class_that_is_code_is_passed_over(copied: Copy, tmp_path: Path) -> None:
    """tokenizer.json beside it is what is read."""
    from lowrank_export.exporters.export import export
    from lowrank_export.exporters.registry import requested

    folder, said = copied("dense"), {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Evil: pass\n")
    for format in ("gguf", "onnx"):
        export(folder, tmp_path / format, requested(format))
        assert (tmp_path / format).exists() and not (folder / "ran").exists()


def test_a_tokenizer_that_ends_the_process(models: Path, copied: Copy, refused: Refused) -> None:
    """The library's Rust panics over a prefix that its own vocabulary lacks, and takes Python along."""
    path = (folder := copied("dense")) / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["continuing_subword_prefix"] = "c"
    path.write_text(json.dumps(content))
    text = ["--calibration", models / "text.txt", "--windows", 2, "--window-length", 32, "--rank-multiple", 4]
    refused("plan", "--model", folder, *text, code=3, needle="no usable tokenizer")


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


def test_pickles_are_not_read(copied: Copy, refused: Refused, tmp_path: Path) -> None:
    folder, ran = copied("dense"), tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Bomb(str(ran))))
    for command in (["inspect", folder], plan(folder), ["export", folder, "--out", "out"]):
        refused(*command, code=3, needle="pickles are not read")
    assert not ran.exists()


def test_code_beside_a_sound_model_is_not_run(copied: Copy, models: Path, tmp_path: Path) -> None:
    """auto_map names code for everything, and pickles lie there: the model is read without either."""
    from typer.testing import CliRunner

    from lowrank_export.cli import app

    folder, ran = copied("dense"), tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(str(ran))))
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor")
    for file in ("config.json", "tokenizer_config.json"):
        change(folder / file, auto_map=dict.fromkeys(names, "evil.Evil"))
    text = ["--calibration", models / "text.txt", "--windows", 2, "--window-length", 32, "--rank-multiple", 4]
    for command in (
        ["inspect", folder],
        ["plan", "--model", folder, *text],
        ["compress", "--model", folder, *text, "--out", "ckpt"],
        ["export", folder, "--out", "out", "--gguf-type", "f32"],
        ["export", "ckpt", "--out", "out2", "--gguf-type", "f32"],
    ):
        result = CliRunner().invoke(app, [str(word) for word in command])
        assert result.exit_code == 0, result.stderr
    assert not ran.exists()


def test_adapters_are_not_followed(copied: Copy, refused: Refused) -> None:
    folder = copied("dense")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else", "peft_type": "LORA"}')
    refused(*plan(folder), code=3, needle="holds an adapter")
    refused("export", folder, "--out", "out", code=3, needle="holds an adapter")
