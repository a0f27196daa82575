"""GenAI's tokenizer against the checkpoint's; that it is asked before any work stands in test_refusals.py."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.exporters.onnx.check.check_windows import Tokenized, tokenize_texts
from lowrank_export.exporters.onnx.check.genai_tokenizer import check_readable, check_tokenizer
from lowrank_export.exporters.onnx.export import export_onnx
from lowrank_export.exporters.onnx.tokenizer_files import write_tokenizer


class Told(SilentProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


class Fake:
    """Reads and writes what it is given."""

    def __init__(self, expected: Tokenized, more: int = 0, letters: str = "") -> None:
        self._left, self._texts, self._more, self._letters = (
            list(expected.tokens),
            list(expected.decoded),
            more,
            letters,
        )

    def encode(self, text: str) -> list[int]:
        return [*self._left.pop(0), *[1] * self._more]

    def decode(self, ids: object) -> str:
        return self._texts.pop(0) + self._letters


def test_readable(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path, "llama", blocks=1)
    check_readable(tmp_path, 320, 512)
    expected = tokenize_texts(tmp_path, 320)
    check_tokenizer(Fake(expected), expected, tmp_path)
    with pytest.raises(InputError, match="otherwise than the checkpoint's: "):
        check_tokenizer(Fake(expected, more=1), expected, tmp_path)
    with pytest.raises(InputError, match="tokenizer writes"):
        check_tokenizer(Fake(expected, letters="!"), expected, tmp_path)


@pytest.mark.parametrize("begins", [False, True])
def test_what_genai_leaves_out_is_said(begins: bool, tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "m", "llama", blocks=1)
    if begins:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "m")
        template = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
        tokenizer.backend_tokenizer.post_processor = template
        tokenizer.save_pretrained(tmp_path / "m")
    progress = Told()
    export_onnx(tmp_path / "m", tmp_path / "out", quantization="int8", progress=progress)
    said = [note for note in progress.notes if "leaves out ['<|endoftext|>'], which the model's puts before" in note]
    assert len(said) == begins


def test_no_limit_of_length_is_written_as_the_models(tiny: ModuleType, tmp_path: Path) -> None:
    """transformers writes 10^30 for none, which GenAI's reader of JSON does not take."""
    tiny.save_dense(tmp_path / "m", "llama", blocks=1)
    (tmp_path / "out").mkdir()
    write_tokenizer(tmp_path / "m", tmp_path / "out", 77)
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 77
