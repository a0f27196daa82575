"""Artifacts damaged on purpose: the right gate fails, from the command line, with exit code 4 and in one line."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from lowrank_export.cli import app
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.storage.gguf_header import read_header
from lowrank_export.exporters.gguf.mixes import Quantization
from lowrank_export.exporters.gguf.writer import export_gguf
from lowrank_export.exporters.llamacpp.runtime import find_runtime
from lowrank_export.exporters.onnx.export import export_onnx

RANK = 24
LINEAR = "model.layers.1.self_attn.q_proj"
STORED = "blk.1.attn_q"
needs_llama_cpp = pytest.mark.skipif(find_runtime() is None, reason="the llama.cpp runtime has not been built")


@pytest.fixture(scope="module")
def models(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The factored model in every format, "f32.gguf" and "q8_0.gguf", "onnx", "checkpoint", and "text.txt"."""
    folder = tmp_path_factory.mktemp("models")
    tiny.save_factored(folder / "checkpoint", "llama", rank=RANK)
    tiny.save_dense(folder / "dense", "llama")
    for kind in ("f32", "q8_0"):
        export_gguf(folder / "checkpoint", folder / f"{kind}.gguf", Quantization(kind), progress=SilentProgress())
    export_onnx(folder / "checkpoint", folder / "onnx", quantization="fp32", progress=SilentProgress())
    (folder / "text.txt").write_text(tiny.TEXT, encoding="utf-8")
    return folder


def validate(models: Path, artifact: Path, *options: Any) -> Any:
    """Run the gate on one artifact."""
    measured = {"evaluate": models / "text.txt", "evaluation-windows": 3, "evaluation-length": 48, "threads": 1}
    arguments = ["validate", artifact, "--reference", models / "checkpoint", "--no-speed", *options]
    arguments += [part for name, value in measured.items() for part in (f"--{name}", value)]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def failures(result: Any) -> dict[str, str]:
    """Failed gate -> its line on stderr."""
    assert result.exit_code == 4, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("gate failed: ")]
    return {line.split(": ")[2].split(" ")[0]: line for line in lines}


def data_of(path: Path, tensor: str) -> tuple[int, int]:
    """Where a tensor's data lie in a GGUF file, and how long they are."""
    found = next(one for one in read_header(path).tensors if one.name == tensor)
    return found.offset, found.bytes


def flip_f32_block(path: Path) -> None:
    """32 weights of one factor change their sign."""
    start, _ = data_of(path, f"{STORED}.lowrank_v.weight")
    weights = np.memmap(path, np.float32, "r+", offset=start, shape=(32,))
    weights *= -1


def flip_q8_0_block(path: Path) -> None:
    """The scale of one block of 32 weights changes its sign."""
    start, _ = data_of(path, "blk.0.ffn_up.lowrank_v.weight")
    scale = np.memmap(path, np.uint8, "r+", offset=start, shape=(2,))
    scale[1] ^= 0x80


def swap_factors(path: Path) -> None:
    """U holds V and V holds U: of a square linear the shapes fit."""
    places = [data_of(path, f"{STORED}.lowrank_{side}.weight") for side in "uv"]
    u, v = (np.memmap(path, np.float32, "r+", offset=start, shape=(size // 4,)) for start, size in places)
    first, second = np.array(u).reshape(-1, RANK), np.array(v).reshape(RANK, -1)
    u[:], v[:] = second.T.reshape(-1), first.T.reshape(-1)


def change_rope(path: Path) -> None:
    """Another base frequency."""
    key = b"llama.rope.freq_base"
    content = path.read_bytes()
    at = content.index(key) + len(key)
    assert struct.unpack_from("<I", content, at) == (6,)  # a float
    path.write_bytes(content[: at + 4] + struct.pack("<f", 100.0) + content[at + 8 :])


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 3 // 4)


@needs_llama_cpp
@pytest.mark.parametrize(
    ("name", "damage", "gates"),
    [
        ("f32.gguf", None, set()),
        ("q8_0.gguf", None, set()),
        ("f32.gguf", flip_f32_block, {"parity.mean_kld"}),
        ("q8_0.gguf", flip_q8_0_block, {"parity.mean_kld"}),
        ("f32.gguf", swap_factors, {"parity.mean_kld", "parity.perplexity_change"}),
        ("f32.gguf", change_rope, {"parity.mean_kld"}),
        ("f32.gguf", truncate, {"artifact.runs"}),
    ],
)
def test_gguf(models: Path, tmp_path: Path, name: str, damage: Callable[[Path], None] | None, gates: set[str]) -> None:
    shutil.copyfile(models / name, tmp_path / name)
    if damage is None:
        result = validate(models, tmp_path / name, "--json")
        assert result.exit_code == 0 and json.loads(result.stdout)["passed"], result.stderr
        return
    damage(tmp_path / name)
    found = failures(validate(models, tmp_path / name, "--json"))
    assert gates <= set(found), found
    for gate, line in found.items():
        assert f"llama.cpp {'unknown' if damage is truncate else name[:-5]} (factored): {gate}" in line
        assert "is allowed" in line
    if damage is truncate:
        assert set(found) == gates and "truncated" in found["artifact.runs"]


def other_tokenizer(tiny: ModuleType) -> Any:
    """As many tokens, other merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": ["<|endoftext|>"], "initial_alphabet": alphabet, "show_progress": False}
    raw.train_from_iterator([tiny.TEXT[::-1]], trainers.BpeTrainer(vocab_size=tiny.VOCABULARY, **options))
    special = dict.fromkeys(("eos_token", "bos_token", "pad_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)


@pytest.mark.parametrize("format", [pytest.param("gguf", marks=needs_llama_cpp), "onnx", "checkpoint"])
def test_wrong_tokenizer(tiny: ModuleType, models: Path, tmp_path: Path, format: str) -> None:
    """The weights are right, so that no logit of a window of token ids is wrong."""
    wrong = tmp_path / "wrong"
    shutil.copytree(models / "checkpoint", wrong)
    other_tokenizer(tiny).save_pretrained(wrong)
    artifact = wrong
    if format == "gguf":
        artifact = export_gguf(wrong, tmp_path / "m.gguf", Quantization("f32"), progress=SilentProgress()).path
    elif format == "onnx":
        artifact = export_onnx(wrong, tmp_path / "onnx", quantization="fp32", progress=SilentProgress()).path
    found = failures(validate(models, artifact, "--json"))
    assert set(found) == {"artifact.tokenizer"}
    assert "at most 0 is allowed (first: " in found["artifact.tokenizer"]


def flip_block(file: Path) -> None:
    """32 weights in the middle of a file change their sign."""
    weights = np.memmap(file, np.float32, "r+", offset=file.stat().st_size // 2 // 128 * 128, shape=(32,))
    weights *= -1
    weights.flush()


def swapped(checkpoint: Path) -> None:
    """U and V of one square linear change places."""
    tensors = load_file(checkpoint / "model.safetensors")
    u, v = (f"{LINEAR}.lowrank_{side}.weight" for side in "uv")
    tensors[u], tensors[v] = tensors[v].T.contiguous(), tensors[u].T.contiguous()
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})


def other_rope(checkpoint: Path) -> None:
    """Another base frequency."""
    config = json.loads((checkpoint / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 100.0
    (checkpoint / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("damage", [swapped, other_rope])
def test_onnx_of_another_computation(models: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    shutil.copytree(models / "checkpoint", tmp_path / "checkpoint")
    damage(tmp_path / "checkpoint")
    export_onnx(tmp_path / "checkpoint", tmp_path / "onnx", quantization="fp32", progress=SilentProgress())
    assert "parity.mean_kld" in failures(validate(models, tmp_path / "onnx", "--json"))


def test_onnx(models: Path, tmp_path: Path) -> None:
    for name in ("flipped", "truncated"):
        shutil.copytree(models / "onnx", tmp_path / name)
    flip_block(tmp_path / "flipped" / "model.onnx.data")
    truncate(tmp_path / "truncated" / "model.onnx.data")
    assert validate(models, models / "onnx", "--json").exit_code == 0
    assert "parity.mean_kld" in failures(validate(models, tmp_path / "flipped", "--json"))
    assert set(failures(validate(models, tmp_path / "truncated", "--json"))) == {"artifact.runs"}


@pytest.mark.parametrize(
    ("damage", "gate"),
    [
        (swapped, "parity.mean_kld"),
        (other_rope, "parity.mean_kld"),
        (lambda folder: flip_block(folder / "model.safetensors"), "parity.mean_kld"),
        (lambda folder: truncate(folder / "model.safetensors"), "artifact.runs"),
    ],
    ids=["swapped", "rope", "flipped", "truncated"],
)
def test_checkpoint(models: Path, tmp_path: Path, damage: Callable[[Path], None], gate: str) -> None:
    shutil.copytree(models / "checkpoint", tmp_path / "damaged")
    damage(tmp_path / "damaged")
    assert gate in failures(validate(models, tmp_path / "damaged", "--json"))


def looping(checkpoint: Path) -> None:
    """The next token is always as good as certain: sampling cannot leave a loop."""
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.norm.weight"] *= 1000
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})


def test_garbage_text(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "dense", tmp_path / "looping")
    looping(tmp_path / "looping")
    against = ["--dense", models / "dense", "--json"]
    assert "generation.repetition_increase" in failures(validate(models, tmp_path / "looping", *against))
    assert "generation.repetition_increase" not in failures(
        validate(models, models / "dense", *against, "--gate", "size.bytes=1KB")
    )


@needs_llama_cpp
def test_limits_of_the_user(models: Path) -> None:
    """One gate of every section on a sound artifact, each by its name."""
    wanted = {
        "parity.max_kld": "0",
        "quality.top5": "1",
        "generation.distinct_2": "1",
        "size.bytes": "1KB",
        "tasks.mean": "0.5",
        "speed.decode": "1",
    }
    flags = [part for name, value in wanted.items() for part in ("--gate", f"{name}={value}")]
    found = failures(validate(models, models / "q8_0.gguf", "--dense", models / "dense", "--json", *flags))
    assert set(found) >= set(wanted)
    assert "not measured, needs --task" in found["tasks.mean"]


def test_models_from_anywhere(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--dense` and `--reference` take what `--model` takes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dense = export_gguf(models / "dense", tmp_path / "dense.gguf", Quantization("f32"), progress=SilentProgress()).path
    result = validate(models, models / "checkpoint", "--dense", dense, "--json")
    rows = {row["model"]: row for row in json.loads(result.stdout)["rows"]}
    plain = validate(models, models / "checkpoint", "--dense", models / "dense", "--json")
    expected = {row["model"]: row for row in json.loads(plain.stdout)["rows"]}
    assert rows["dense"]["perplexity"]["value"] == pytest.approx(expected["dense"]["perplexity"]["value"], rel=1e-6)
    again = validate(models, models / "dense", "--reference", dense, "--json")
    assert again.exit_code == 0, again.stderr
    for option in ("--dense", "--reference"):
        missing = validate(models, models / "checkpoint", option, tmp_path / "none")
        assert missing.exit_code == 3 and "none: no such folder or file; give a Hugging Face folder" in missing.stderr


def test_files_for_people_and_ci(models: Path, tmp_path: Path) -> None:
    """One good and one damaged artifact in one call: the good one is measured, both are told apart in every file."""
    shutil.copytree(models / "checkpoint", tmp_path / "bad")
    truncate(tmp_path / "bad" / "model.safetensors")
    out = tmp_path / "out"
    options = [models / "checkpoint", "--dense", models / "dense", "--out", out, "--gate", "quality.mean_kld=1e-9"]
    result = validate(models, tmp_path / "bad", *options)
    assert result.exit_code == 4 and "2 of " in result.stderr and "quality.mean_kld" in result.stderr
    suites = ElementTree.parse(out / "junit.xml").getroot()
    failed = {case.get("name"): suite.get("name") for suite in suites for case in suite.iter("testcase") if len(case)}
    assert failed == {"artifact.runs": "torch unknown (factored)", "quality.mean_kld": "torch f32 (factored)"}
    assert suites.get("failures") == "2" and int(suites.get("tests", 0)) > 5
    page, text = ((out / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    for words in ("No.", "artifact.runs", "quality.mean_kld", "at most 1e-09 is allowed"):
        assert words in page and words.replace("No.", "**No:**") in text, words
    again = validate(models, models / "checkpoint", "--out", out)
    assert again.exit_code == 2 and "--force" in again.stderr
    passed = validate(models, models / "checkpoint", "--out", out, "--force")
    assert passed.exit_code == 0 and "**Yes:**" in (out / "report.md").read_text(encoding="utf-8")


def test_missing_artifacts_and_bad_gates_come_before_any_work(models: Path, tmp_path: Path) -> None:
    (tmp_path / "gates.yaml").write_text("parity: {mean_kdl: 1}")
    missing = validate(models, tmp_path / "none.gguf")
    assert missing.exit_code == 3 and "no such file or folder" in missing.stderr
    for options in (["--gates", tmp_path / "gates.yaml"], ["--gate", "parity.mean_kdl=1"]):
        bad = validate(models, models / "checkpoint", *options)
        assert (bad.exit_code, bad.stderr.count("\n")) == (2, 1)
        assert "unknown gate 'mean_kdl' in parity; did you mean 'mean_kld'?" in bad.stderr


def test_two_runs_give_the_same_figures(models: Path, tmp_path: Path) -> None:
    """Everything but the command; speed is not asked for."""
    documents = []
    for seed in (3, 3, 4):
        result = validate(models, models / "onnx", "--json", "--dense", models / "dense", "--seed", seed)
        document = json.loads(result.stdout)
        del document["provenance"]["command"]
        documents.append(document)
    assert documents[0] == documents[1] != documents[2]
