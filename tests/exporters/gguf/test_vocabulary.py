"""Tokenizers: which of llama.cpp's they become. That both give the same ids is tested with the runtime."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lowrank_export.converter.core.errors import InputError
from lowrank_export.exporters.gguf.pretokenizers import LLAMA3, QWEN2, TEKKEN, pretokenizer_name
from lowrank_export.exporters.gguf.vocabulary import CONTROL, NORMAL, UNUSED, read_vocabulary

GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
DIGITS = {"type": "Digits", "individual_digits": True}


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def pipeline(*steps: dict[str, Any], ignore_merges: bool = False, normalizer: Any = None) -> dict[str, Any]:
    splitter = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": list(steps)}
    return {"normalizer": normalizer, "pre_tokenizer": splitter, "model": {"ignore_merges": ignore_merges}}


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (pipeline(GPT2), "gpt-2"),
        (pipeline(DIGITS, GPT2), "smollm"),
        (pipeline(split(LLAMA3), BYTES, ignore_merges=True), "llama-bpe"),
        (pipeline(split(LLAMA3), BYTES), "smaug-bpe"),
        (pipeline(split(QWEN2), BYTES, normalizer={"type": "NFC"}), "qwen2"),
        (pipeline(split(TEKKEN), BYTES, ignore_merges=True), "tekken"),
    ],
)
def test_pretokenizer(data: dict[str, Any], name: str) -> None:
    assert pretokenizer_name(data) == name


@pytest.mark.parametrize(
    "data",
    [
        pipeline(split("[a-z]+"), BYTES),
        pipeline({**GPT2, "add_prefix_space": True}),
        pipeline(GPT2, ignore_merges=True),
        pipeline(GPT2, normalizer={"type": "Lowercase"}),
        {"normalizer": None, "pre_tokenizer": None, "model": {}},
    ],
)
def test_unknown_structure_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="tokenizer:"):
        pretokenizer_name(data)


def test_byte_level(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    found = read_vocabulary(tmp_path, tiny.VOCABULARY + 3)
    assert (found.model, found.pre, found.scores) == ("gpt2", "gpt-2", ())
    assert found.tokens[0] == "<|endoftext|>" and found.types[0] == CONTROL and found.types[1] == NORMAL
    assert found.tokens[-1] == f"[PAD{tiny.VOCABULARY + 2}]" and found.types[-3:] == (UNUSED,) * 3
    assert found.special == {"bos": 0, "eos": 0, "pad": 0}
    assert not found.add_bos and not found.add_eos
    assert all(merge.count(" ") == 1 for merge in found.merges)


def test_template_that_adds_the_start_token(tiny: ModuleType, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tiny.tokenizer().save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path)
    found = read_vocabulary(tmp_path, tiny.VOCABULARY)
    assert found.add_bos and not found.add_eos
    assert found.chat_templates == {"default": "{{ messages }}"}


def test_more_tokens_than_rows(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"token id 319.*300 rows"):
        read_vocabulary(tmp_path, 300)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no usable tokenizer"):
        read_vocabulary(tmp_path, 10)


def test_wordpiece_is_refused(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["model"] = {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}
    data["added_tokens"] = []
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(InputError, match="only BPE"):
        read_vocabulary(tmp_path, 10)


def test_what_a_file_cannot_say_is_a_note(tiny: ModuleType, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tiny.tokenizer().save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    twice = TemplateProcessing(single="<|endoftext|> <|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tokenizer.backend_tokenizer.post_processor = twice
    tokenizer.chat_template = {"rag": "x", "tool": "y"}
    tokenizer.save_pretrained(tmp_path)
    found = read_vocabulary(tmp_path, tiny.VOCABULARY)
    assert not found.add_bos and not found.add_eos
    around, templates = found.notes
    assert "puts ['<|endoftext|>', '<|endoftext|>'] around every text" in around
    assert "none of the chat templates (rag, tool) is the default" in templates
