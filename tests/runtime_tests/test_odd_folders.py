"""Model folders as people have them, compressed and exported: every runtime computes, and reads, what torch does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.recipe import Recipe
from lowrank_export.converter.model.loading import load, load_tokenizer
from lowrank_export.converter.pipeline import compress
from lowrank_export.converter.storage.gguf_header import read_header
from lowrank_export.exporters.export import export
from lowrank_export.exporters.registry import requested
from lowrank_export.runtime_tests.backends.formats import backend_names
from lowrank_export.runtime_tests.backends.open import open_backend, released
from lowrank_export.runtime_tests.metrics.tokenizer_check import check_tokenizer

pytestmark = pytest.mark.usefixtures("llama_cpp_runtime")
GGUF, ONNX = "m.gguf", "onnx"
TOOLS, RAG = "{% for m in messages %}T{{ m.content }}{% endfor %}", "R{{ messages[0].content }}"
EMOJI = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}😀{% endfor %}"


def edit(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    document = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def more_rows_than_tokens(folder: Path, tiny: ModuleType) -> None:
    tiny.save_dense(folder, "llama", vocab_size=333)


def as_before_transformers_5(folder: Path, tiny: ModuleType) -> None:
    """Shards in bfloat16, no generation_config.json, `torch_dtype`, the rotary base beside an empty `rope_scaling`."""
    base = {"rope_type": "default", "rope_theta": 50000.0}
    model = tiny.save_dense(folder, "llama", tied=False, rope_parameters=base)
    (folder / "model.safetensors").unlink()
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="60KB")
    (folder / "generation_config.json").unlink()
    edit(folder / "config.json", dtype=None, torch_dtype="bfloat16", rope_parameters=None, head_dim=None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": 50000.0, "rope_scaling": None}))


def the_head_in_place_of_the_embedding(folder: Path, tiny: ModuleType) -> None:
    """A tied model of which the other one of the two was stored."""
    tiny.save_dense(folder, "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def a_class_with_rules_of_its_own(folder: Path, tiny: ModuleType) -> None:
    """transformers picks Qwen2's tokenizer by the model type, which splits texts otherwise than tokenizer.json says."""
    tiny.save_dense(folder, "qwen2", tied=False)


def templates_by_name(folder: Path, tiny: ModuleType) -> None:
    tiny.save_dense(folder, "llama", tied=False)
    named = [{"name": "tool_use", "template": TOOLS}, {"name": "rag", "template": RAG}]
    edit(folder / "tokenizer_config.json", chat_template=named)


def templates_in_files(folder: Path, tiny: ModuleType) -> None:
    tiny.save_dense(folder, "llama", tied=False)
    (folder / "chat_template.jinja").write_text(EMOJI)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text(RAG)


def a_template_in_a_file(folder: Path, tiny: ModuleType) -> None:
    tiny.save_dense(folder, "llama", tied=False)
    (folder / "chat_template.jinja").write_text(EMOJI)


FOLDERS: dict[str, Callable[[Path, ModuleType], None]] = {
    make.__name__.replace("_", " "): make
    for make in (
        more_rows_than_tokens,
        as_before_transformers_5,
        the_head_in_place_of_the_embedding,
        a_class_with_rules_of_its_own,
        templates_by_name,
        templates_in_files,
        a_template_in_a_file,
    )
}


@pytest.fixture(scope="module", params=FOLDERS)
def made(request: pytest.FixtureRequest, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with "m", the model, "factored", and an export of that in every format."""
    folder: Path = tmp_path_factory.mktemp("odd") / request.param
    folder.mkdir()
    FOLDERS[request.param](folder / "m", tiny)
    (folder / "text.txt").write_text(tiny.TEXT)
    recipe = Recipe(
        model=str(folder / "m"),
        method="svd-llm",
        rank_multiple=4,
        calibration=str(folder / "text.txt"),
        windows=4,
        window_length=32,
        held_out=0,
    )
    compress(recipe, folder / "factored")
    export(folder / "factored", folder / GGUF, requested("gguf", "f32"))
    export(folder / "factored", folder / ONNX, requested("onnx", "fp32"))
    return folder


def test_every_runtime_computes_and_reads_the_same(made: Path) -> None:
    tokens = np.arange(40, dtype=np.int32)
    with torch.no_grad():
        expected = load(made / "factored", dtype=torch.float32)(torch.from_numpy(tokens).long()[None]).logits[0].numpy()
    reference = load_tokenizer(made / "m")
    for artifact in (made / GGUF, made / ONNX):
        for name in backend_names(artifact):
            with released(open_backend(artifact, name, threads=1, context=64)) as backend:
                np.testing.assert_allclose(backend.window_logits(tokens), expected, rtol=2e-4, atol=2e-4)
                found = check_tokenizer(backend, artifact, reference)
                assert found is None or found.differing == (), name


def test_what_the_artifacts_hold(made: Path) -> None:
    """The templates under their names, the rotary base, a token for every row."""
    fields = read_header(made / GGUF).metadata
    templates = {key: text for key, text in fields.items() if key.startswith("tokenizer.chat_template")}
    kept = load_tokenizer(made / "factored")
    assert kept.chat_template == load_tokenizer(made / ONNX).chat_template == load_tokenizer(made / "m").chat_template
    rows = CheckpointReader(made / "m").shape("model.embed_tokens.weight")[0]
    assert len(fields["tokenizer.ggml.tokens"]) == fields[f"{fields['general.architecture']}.vocab_size"] == rows
    match made.name:
        case "templates by name":
            named = {"tokenizer.chat_template.tool_use": TOOLS, "tokenizer.chat_template.rag": RAG}
            assert templates == {**named, "tokenizer.chat_templates": ["rag", "tool_use"]}
        case "templates in files":
            both = {"tokenizer.chat_template": EMOJI, "tokenizer.chat_template.rag": RAG}
            assert templates == {**both, "tokenizer.chat_templates": ["rag"]}
        case "a template in a file":
            assert templates == {"tokenizer.chat_template": EMOJI}
        case "as before transformers 5":
            assert fields["llama.rope.freq_base"] == 50000.0
        case "a class with rules of its own":
            picked, text = AutoTokenizer.from_pretrained(made / "m"), "Numbers: 0 12 345"
            assert kept(text).input_ids == load_tokenizer(made / ONNX)(text).input_ids != picked(text).input_ids
        case "the head in place of the embedding":
            names = {tensor.name for tensor in read_header(made / GGUF).tensors}
            assert "token_embd.weight" in names and "output.weight" not in names
        case "more rows than tokens":
            assert rows == 333 and fields["tokenizer.ggml.tokens"][-1] == "[PAD332]"
        case other:
            pytest.fail(f"nothing is known of {other}")
