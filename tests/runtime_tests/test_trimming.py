"""What a smaller vocabulary costs, and that both formats' runtimes take it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from lowrank_export.cli import app
from lowrank_export.exporters.export import export
from lowrank_export.exporters.registry import requested
from lowrank_export.runtime_tests.backends.genai import GenAiBackend
from lowrank_export.runtime_tests.backends.llama_cpp import LlamaCppBackend
from lowrank_export.runtime_tests.backends.onnxruntime import OnnxRuntimeBackend

TEXT = "def factor(weight, rank): return the rank of the weight\n" * 30
OTHER = (
    "Äpfel und 日本, 0123456789: @{[]} \t|~ everything that the first text has not, in many words of their own\n" * 30
)


@pytest.fixture(scope="module")
def made(
    tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory, llama_cpp_runtime: Path
) -> tuple[Path, Path, dict[str, object], str]:
    """Dense folder, trimmed folder, the command's document, what it said."""
    place = tmp_path_factory.mktemp("trimming")
    tiny.save_dense(place / "dense", "llama", hidden_size=64)
    for name, text in (("text", TEXT), ("other", OTHER)):
        (place / f"{name}.txt").write_text(text, encoding="utf-8")
    command = ["trim", "--model", str(place / "dense"), "--keep-vocabulary", str(place / "text.txt"), "--json"]
    command += ["--evaluate", str(place / "text.txt"), "--evaluate", str(place / "other.txt"), "--passages", "3"]
    command += ["--passage-length", "200", "--out", str(place / "small")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    return place / "dense", place / "small", json.loads(done.stdout), done.stderr


def test_costs_against_a_slow_reference(made: tuple[Path, Path, dict[str, object], str]) -> None:
    dense, small, found, said = made
    assert found["rows"][0] > found["rows"][1]  # type: ignore[index]
    texts: dict[str, dict[str, float]] = found["texts"]  # type: ignore[assignment]
    (text, kept), (_, other) = texts.items()
    assert kept["tokens"][0] == kept["tokens"][1]  # type: ignore[index]
    assert abs(kept["difference"]) < 0.5  # fewer tokens share the probability
    assert other["tokens"][0] < other["tokens"][1]  # type: ignore[index]
    whole = Path(text).read_text(encoding="utf-8")
    starts = [index * (len(whole) // 3) for index in range(3)]
    starts = [start and whole.find(" ", start) + 1 for start in starts]
    pieces = [whole[start : start + 200] for start in starts]
    pieces = [piece[: piece.rfind(" ")] for piece in pieces]
    for folder, key in ((dense, "bits_per_byte"), (small, "trimmed_bits_per_byte")):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        loss = 0.0
        for piece in pieces:
            ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(piece)["input_ids"]]])
            with torch.no_grad():
                loss += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        bits = loss / math.log(2) / sum(len(piece.encode()) for piece in pieces)
        assert kept[key] == pytest.approx(bits, rel=1e-5)
    assert "bits per byte" in said


def test_runtimes_take_it(made: tuple[Path, Path, dict[str, object], str], tmp_path: Path) -> None:
    """Tokens and logits of llama.cpp and ONNX Runtime are torch's."""
    _, small, _, _ = made
    tokenizer = AutoTokenizer.from_pretrained(small)
    ids = tokenizer(TEXT[:80] + "Ä日|~", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(small)(torch.tensor([ids])).logits[0].numpy()
    gguf = export(small, tmp_path / "m.gguf", requested("gguf", "f32")).path
    onnx = export(small, tmp_path / "onnx", requested("onnx", "fp32")).path
    tokens = np.array(ids, dtype=np.int32)
    llama = LlamaCppBackend(gguf, n_ctx=256)
    assert llama.tokenize(TEXT[:80] + "Ä日|~") == ids
    assert llama.special_tokens()[1] == {tokenizer.eos_token_id}
    genai = GenAiBackend(onnx, threads=1)
    assert genai.tokenize(TEXT[:80]) == tokenizer(TEXT[:80])["input_ids"]
    for backend in (llama, OnnxRuntimeBackend(onnx, threads=1), genai):
        np.testing.assert_allclose(backend.window_logits(tokens), wanted, atol=1e-4)
        backend.close()


def test_bad_input_is_one_line(made: tuple[Path, Path, dict[str, object], str], tmp_path: Path) -> None:
    dense, small, _, _ = made
    common = ["trim", "--model", str(dense), "--keep-vocabulary", str(tmp_path / "none.txt")]
    for more, message, code in (
        (["--out", str(small)], "already exists", 2),
        (["--out", str(tmp_path / "x")], "none.txt", 3),
        (["--keep-vocabulary", "self", "--out", str(tmp_path / "x")], "keep_vocabulary self: only a text's tokens", 3),
        (["--keep-vocabulary", "a + b", "--out", str(tmp_path / "x")], "in an option of its own", 3),
    ):
        done = CliRunner().invoke(app, [*common, *more])
        assert done.exit_code == code
        assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    command = ["trim", "--model", str(dense), "--keep-vocabulary", str(text), "--vocabulary-size", "7"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "x")])
    assert done.exit_code == 2
    assert "vocabulary_size 7" in done.stderr
    assert not (tmp_path / "x").exists()
