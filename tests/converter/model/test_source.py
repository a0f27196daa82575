"""Where models come from. Nothing here uses a network; the cache is a temporary folder."""

from __future__ import annotations

import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.model import gguf_conversion
from lowrank_export.converter.model.loading import load
from lowrank_export.converter.model.source import Source, open_source
from lowrank_export.exporters.gguf.mixes import Quantization
from lowrank_export.exporters.gguf.writer import export_gguf

SILENT = SilentProgress()
TOKENS = torch.arange(24)[None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lowrank-export"


def opened(spec: Any) -> Source:
    return open_source(str(spec), SILENT)


def test_folder(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "m", "qwen3")
    (tmp_path / "m" / "README.md").write_text("---\nlicense: mit\n---\nlicense: no\n")
    found = opened(tmp_path / "m")
    assert (found.path, found.family.model_type, found.licence) == (tmp_path / "m", "qwen3", "mit")
    assert found.reader().names
    (tmp_path / "m" / "README.md").unlink()
    assert opened(tmp_path / "m").licence == "unknown"


@pytest.mark.parametrize("spec", ["/none/at/all", "./none", "none", "a/b/c", "~/none-at-all", "none.gguf"])
def test_missing_path(spec: str) -> None:
    with pytest.raises(InputError, match=r"no such folder or file; give a Hugging Face folder, .*`demo`$"):
        opened(spec)


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="not a model"):
        opened(tmp_path / "m.bin")


def test_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("cannot reach the hub\nmany\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(InputError, match=r"^--model owner/name: no such folder here.*\(cannot reach the hub\)$"):
        opened("owner/name")


def test_hub_id(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(spec: str, allow_patterns: list[str]) -> str:
        asked[spec] = allow_patterns
        return str(tmp_path / "m")

    tiny.save_dense(tmp_path / "m", "llama")
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert opened("owner/name").path == tmp_path / "m"
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in asked["owner/name"])


def test_unknown_family_lists_the_supported(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "m", "bloom")
    with pytest.raises(
        InputError, match=r"model family 'bloom' is not supported; supported: llama, mistral, qwen2, qw"
    ):
        opened(tmp_path / "m")


def test_factored_checkpoint_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_factored(tmp_path / "m", "llama", rank=8)
    with pytest.raises(InputError, match="is a factored checkpoint already; start from the dense model"):
        opened(tmp_path / "m")


def test_fingerprint_follows_weights_and_config(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "m", "llama")
    first = opened(tmp_path / "m").fingerprint()
    (tmp_path / "m" / "notes.txt").write_text("no part of the model")
    assert opened(tmp_path / "m").fingerprint() == first
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    second = opened(tmp_path / "m").fingerprint()
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace("silu", "gelu"))
    assert len({first, second, opened(tmp_path / "m").fingerprint()}) == 3


@pytest.mark.parametrize(
    ("family", "tied"), [("llama", True), ("qwen2", False), ("qwen3", True), ("gemma3_text", True)]
)
def test_gguf_gives_the_same_logits(tiny: ModuleType, tmp_path: Path, cache: Path, family: str, tied: bool) -> None:
    tokenizer = tiny.sentencepiece(space_before=False) if family == "gemma3_text" else tiny.tokenizer()
    options = {"final_logit_softcapping": 3.0, "blocks": 3} if family == "gemma3_text" else {}
    tiny.save_factored(tmp_path / "m", family, rank=16, tied=tied, vocab_size=len(tokenizer), **options)
    tokenizer.save_pretrained(tmp_path / "m")
    gguf = tmp_path / "tiny.gguf"
    export_gguf(tmp_path / "m", gguf, Quantization("f32"), layout="dense", progress=SILENT)
    found = opened(gguf)
    assert found.path.is_relative_to(cache) and found.family.model_type == family
    with torch.no_grad():
        got, want = load(found.path)(TOKENS).logits, load(tmp_path / "m")(TOKENS).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    from transformers import AutoTokenizer

    text = "a rank 31,\n\nand more"
    expected = tokenizer.encode(text, add_special_tokens=False)
    assert AutoTokenizer.from_pretrained(found.path).encode(text, add_special_tokens=False) == expected


def test_a_tokenizer_that_transformers_does_not_expect(tiny: ModuleType, tmp_path: Path, cache: Path) -> None:
    tiny.save_dense(tmp_path / "m", "gemma3_text", blocks=1)
    export_gguf(tmp_path / "m", tmp_path / "m.gguf", Quantization("f32"), progress=SILENT)
    with pytest.raises(InputError, match=r"m\.gguf: has a tokenizer of kind 'gpt2'"):
        opened(tmp_path / "m.gguf")
    assert not list(cache.glob("models/*"))


def test_gguf_is_converted_once_and_again_when_it_changes(
    tiny: ModuleType, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf, converted = tmp_path / "m.gguf", []

    def convert(path: Path, out: Path, named: Path) -> None:
        converted.append(path)
        tiny.save_dense(out, "llama")

    monkeypatch.setattr(gguf_conversion, "_convert_gguf", convert)
    for content in (b"one", b"one", b"two"):
        gguf.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + content)
        opened(gguf)
    assert len(converted) == 2
    assert len(list((cache / "models").iterdir())) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a GGUF"), (b"PK\x03\x04", "not a GGUF"), (b"GGUF rubbish", "damaged or truncated")],
)
def test_not_a_gguf(tmp_path: Path, cache: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        opened(tmp_path / "m.gguf")
    assert "\n" not in str(error.value)
    assert not list(cache.rglob("*m*.partial")) and not list(cache.glob("models/*"))


def test_factored_gguf_is_refused(tiny: ModuleType, tmp_path: Path, cache: Path) -> None:
    tiny.save_factored(tmp_path / "m", "llama", rank=8)
    export_gguf(tmp_path / "m", tmp_path / "m.gguf", Quantization("f32"), progress=SILENT)
    with pytest.raises(InputError, match=r"m\.gguf: is factored already; start from the dense model"):
        opened(tmp_path / "m.gguf")
    assert not list(cache.glob("models/*"))
