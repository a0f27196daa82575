"""The gate of the tokenizer: ends, begin and added tokens as the runtime itself has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lowrank_export.converter.model.loading import load_tokenizer
from lowrank_export.exporters.export import export
from lowrank_export.exporters.registry import requested
from lowrank_export.runtime_tests.backends.open import open_backend
from lowrank_export.runtime_tests.metrics.tokenizer_check import BEGIN, END, TokenizerCheck, check_tokenizer

pytestmark = pytest.mark.usefixtures("llama_cpp_runtime")
Check = Callable[[Path, Path], TokenizerCheck | None]


def edit(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    document = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Path:
    """A model with two added tokens, of which one is text, and rows to spare."""
    folder: Path = tmp_path_factory.mktemp("m")
    tiny.save_dense(folder, "llama", blocks=1, tied=False, vocab_size=336)
    tokenizer = type(tiny.tokenizer()).from_pretrained(str(folder))
    tokenizer.add_tokens(["<|turn|>"], special_tokens=True)
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(folder)
    return folder


def copied(checkpoint: Path, to: Path) -> Path:
    to.mkdir()
    for file in checkpoint.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def check(artifact: Path, name: str, reference: Path) -> TokenizerCheck:
    backend = open_backend(artifact, name=name, threads=1, context=64)
    try:
        found = check_tokenizer(backend, artifact, load_tokenizer(reference))
    finally:
        backend.close()
    assert found is not None
    return found


FORMATS = {"gguf": ("q8_0", "llama.cpp"), "onnx": ("fp32", "onnxruntime-genai")}


@pytest.fixture(params=FORMATS)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path], tuple[Path, str]]:
    def make(folder: Path) -> tuple[Path, str]:
        quantization, name = FORMATS[request.param]
        out = tmp_path / f"out.{request.param}"
        export(folder, out, requested(request.param, quantization))
        return out, name

    return make


def test_several_ends_go_to_every_format(made: Any, checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path / "m")
    edit(folder / "generation_config.json", eos_token_id=[320, 7])
    found = check(*made(folder), folder)
    assert found.differing == () and found.texts >= 10 + 2 + 3


def test_ids_that_only_config_states(made: Any, checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path / "m")
    for name in ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)
    edit(folder / "config.json", eos_token_id=5, bos_token_id=0)
    assert check(*made(folder), folder).differing == ()


def test_ids_that_only_the_tokenizer_states(made: Any, checkpoint: Path, tmp_path: Path) -> None:
    """Not the defaults of the configuration's class, 1 and 2, which are text here."""
    folder = copied(checkpoint, tmp_path / "m")
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", eos_token_id=None, bos_token_id=None)
    assert check(*made(folder), folder).differing == ()


def test_an_end_that_the_artifact_lacks(made: Any, checkpoint: Path, tmp_path: Path) -> None:
    artifact = made(checkpoint)
    folder = copied(checkpoint, tmp_path / "m")
    edit(folder / "generation_config.json", eos_token_id=[0, 7])
    assert END in check(*artifact, folder).differing


def test_an_end_that_is_text_in_the_model(made: Any, checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path / "m")
    edit(folder / "generation_config.json", eos_token_id=[0, 7])
    assert END in check(*made(folder), checkpoint).differing


def test_another_begin(made: Any, checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path / "m")
    edit(folder / "tokenizer_config.json", bos_token="<|turn|>")
    assert BEGIN in check(*made(folder), checkpoint).differing


def test_an_added_token_that_the_artifact_reads_as_text(checkpoint: Path, tiny: ModuleType, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path / "m")
    tiny.tokenizer().save_pretrained(folder)
    export(folder, tmp_path / "m.gguf", requested("gguf", "q8_0"))
    assert {"<|turn|>", "<tool>"} <= set(check(tmp_path / "m.gguf", "llama.cpp", checkpoint).differing)


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    "given", [TEMPLATE, [{"name": "default", "template": TEMPLATE}, {"name": "a-b", "template": "x"}]]
)
def test_chat_templates_are_those_of_the_model(made: Any, checkpoint: Path, tmp_path: Path, given: Any) -> None:
    folder = copied(checkpoint, tmp_path / "m")
    edit(folder / "tokenizer_config.json", chat_template=given)
    artifact, name = made(folder)
    assert check(artifact, name, folder).differing == ()
    assert "(the chat template 'default')" in check(artifact, name, checkpoint).differing  # one that nobody stated
    edit(folder / "tokenizer_config.json", chat_template=TEMPLATE.replace("<", "["))
    assert check(artifact, name, folder).differing[-1] == "(the chat template 'default')"


def test_a_template_that_the_artifact_lacks(made: Any, checkpoint: Path, tmp_path: Path) -> None:
    folder = copied(checkpoint, tmp_path / "m")
    edit(folder / "tokenizer_config.json", chat_template=[{"name": "rag", "template": "x"}])
    artifact, name = made(folder)
    assert check(artifact, name, folder).differing == ()
    edit(folder / "tokenizer_config.json", chat_template=[{"name": "tool", "template": "x"}])
    assert check(artifact, name, folder).differing == ("(the chat template 'tool')",)
