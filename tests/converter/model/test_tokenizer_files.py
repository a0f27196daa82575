"""Folders whose tokenizer cannot be read: the line says what is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.model.loading import load_tokenizer
from lowrank_export.converter.model.tokenizer_trial import check_tokenizer_file


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """As where these are not installed."""
    find = importlib.util.find_spec

    def other(name: str, package: str | None = None) -> Any:
        return None if name in modules else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", other)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"neither tokenizer\.json nor tokenizer\.model nor vocab\.json lies there; copy"
    ):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"])
def test_sentencepiece_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).write_bytes(b"\n\x0e\n\x05<unk>")
    without(monkeypatch, "sentencepiece")
    with pytest.raises(
        InputError, match=rf"{name}: .*sentencepiece and protobuf read this one.*install sentencepiece$"
    ):
        check_tokenizer_file(tmp_path)
    without(monkeypatch, "sentencepiece", "google.protobuf")
    with pytest.raises(InputError, match=r"pip install sentencepiece protobuf$"):
        check_tokenizer_file(tmp_path)


@pytest.mark.parametrize("name", ["vocab.json", "vocab.txt", "qwen.tiktoken", "tekken.json", "tokenizer.model"])
def test_other_files_are_left_to_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).write_text("IQ== 0\n")
    without(monkeypatch, "sentencepiece")
    check_tokenizer_file(tmp_path)


def test_with_a_tokenizer_json_nothing_else_is_wanted(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    without(monkeypatch, "sentencepiece")
    assert len(load_tokenizer(tmp_path)) == 320
