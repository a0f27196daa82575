"""The whole job on a folder of every family that is compressed, shaped as people have them: every gate passes."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from typer.testing import CliRunner

from lowrank_export.cli import app
from lowrank_export.converter.families.table import FAMILIES, compressed

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("llama_cpp_runtime")]
TEMPLATE = "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}{% endfor %}"


def edit(path: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def save(folder: Path, built: Any, tiny: ModuleType) -> None:
    """Shards in bfloat16, a token that begins a text and another that ends a turn, a chat template."""
    built.to(torch.bfloat16).save_pretrained(folder, max_shard_size="100KB")
    tokenizer = deepcopy(tiny.tokenizer())
    tokenizer.add_tokens(["<|begin|>", "<|turn|>"], special_tokens=True)
    tokenizer.bos_token, tokenizer.chat_template = "<|begin|>", TEMPLATE
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 320)]
    )
    tokenizer.save_pretrained(folder)
    edit(folder / "config.json", bos_token_id=320)
    edit(folder / "generation_config.json", bos_token_id=320, eos_token_id=[0, 321])


@pytest.mark.parametrize("family", compressed())
def test_every_gate_passes(family: str, tiny: ModuleType, tmp_path: Path) -> None:
    save(tmp_path / "m", tiny.model(family, vocab_size=352), tiny)
    check_job(tmp_path, tiny, gguf=FAMILIES[family].gguf is not None)


@pytest.mark.parametrize(
    ("name", "text"), [("llava", "mistral"), ("gemma3", "gemma3_text"), ("qwen2_5_vl", "qwen2"), ("smolvlm", "llama")]
)
def test_every_gate_passes_of_a_language_model_that_sees(
    name: str, text: str, tiny: ModuleType, tiny_vision: ModuleType, tmp_path: Path
) -> None:
    save(tmp_path / "m", tiny_vision.model(tiny, name, text, vocab_size=352), tiny)
    check_job(tmp_path, tiny, gguf=True)
    assert tiny_vision.caption(tiny_vision.load(tmp_path / "out" / "checkpoint"), tiny, name)


def check_job(tmp_path: Path, tiny: ModuleType, *, gguf: bool) -> None:
    """The main job on the folder "m", rows of the embedding to spare; calibrated on conversations."""
    talks = [{"messages": [{"role": "user", "content": line}]} for line in tiny.TEXT.splitlines() if line]
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, talks)))
    words = tiny.job_options(tmp_path / "m", tmp_path / "out", f"{tmp_path / 'talks.jsonl'}#messages")
    words += ["--json", "--format", "onnx"]
    words += ["--format", "gguf"] if gguf else []
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    formats = {row["format"] for row in report["rows"]}
    assert formats == {"checkpoint", "onnx", *(["gguf"] if gguf else [])}
    gates = {(row["backend"], gate["name"]) for row in report["rows"] for gate in row["gates"] if gate["passed"]}
    backends = {row["backend"] for row in report["rows"]} - {"torch"}
    assert {(name, "artifact.tokenizer") for name in backends} <= gates
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"checkpoint", "onnx-int8", "report.html"} <= kept and not [name for name in kept if "partial" in name]
