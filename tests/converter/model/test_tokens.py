"""Special tokens as a folder's files state them."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.model.loading import load_tokenizer
from lowrank_export.converter.model.tokens import (
    Around,
    Tokens,
    chat_templates,
    put_around,
    read_tokens,
    tokens_of,
)

WORDS = {"a": 0, "b": 1, "<s>": 2}
ADDED = [
    {"id": 3, "content": "<|end|>", "special": True},
    {"id": 4, "content": "<|turn|>", "special": True},
    {"id": 5, "content": "<tool>", "special": False},
]


def folder(path: Path, **files: Any) -> Path:
    """A folder of JSON files; tokenizer.json is there unless it is None."""
    files = {"tokenizer": {"added_tokens": ADDED, "model": {"vocab": WORDS}}, **files}
    for name, content in files.items():
        if content is not None:
            (path / f"{name}.json").write_text(json.dumps(content))
    return path


def test_the_tokenizer_is_believed_first(tmp_path: Path) -> None:
    found = read_tokens(
        folder(
            tmp_path,
            tokenizer_config={"bos_token": {"content": "<s>"}, "eos_token": "<|turn|>"},
            generation_config={"eos_token_id": [3, 4], "bos_token_id": 0, "pad_token_id": 1},
            config={"eos_token_id": 1, "pad_token_id": 0},
        )
    )
    assert (found.begin, found.ends, found.pad, found.unknown) == (2, (4, 3), 1, None)
    assert found.added == {"<|end|>": 3, "<|turn|>": 4, "<tool>": 5}
    assert found.special == {"<|end|>", "<|turn|>"}


@pytest.mark.parametrize(
    ("files", "begin", "ends"),
    [
        ({"special_tokens_map": {"bos_token": "<s>", "eos_token": {"content": "<|end|>"}}}, 2, (3,)),
        ({"config": {"bos_token_id": 2, "eos_token_id": [4, 3]}}, 2, (4, 3)),
        ({"config": {"eos_token_id": 1}, "generation_config": {"eos_token_id": 3}}, None, (3,)),
        ({"config": {"eos_token_id": 1}, "generation_config": {"eos_token_id": None}}, None, (1,)),
        ({"tokenizer_config": {"eos_token": "<not there>"}, "config": {"eos_token_id": 3}}, None, (3,)),
        ({"tokenizer_config": {"eos_token": None}, "generation_config": {}, "config": {}}, None, ()),
        ({"config": {"model_type": "llama"}}, None, ()),  # of the class's defaults, 1 and 2, nothing
        ({"config": {"eos_token_id": -1, "bos_token_id": "2"}}, None, ()),
        ({"config": {"eos_token_id": True}}, None, ()),
        ({"config": {"eos_token_id": [3, 99]}}, None, (3,)),  # beyond the rows
        (
            {
                "tokenizer": None,
                "tokenizer_config": {
                    "eos_token": "</s>",
                    "added_tokens_decoder": {"2": {"content": "</s>"}, "x": {}},
                },
            },
            None,
            (2,),
        ),
        ({"tokenizer": None}, None, ()),
    ],
)
def test_where_ids_come_from(tmp_path: Path, files: dict[str, Any], begin: int | None, ends: tuple[int, ...]) -> None:
    found = read_tokens(folder(tmp_path, **files), rows=8)
    assert (found.begin, found.ends) == (begin, ends)


def test_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not readable as JSON"):
        (folder(tmp_path) / "generation_config.json").write_text("{")
        read_tokens(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(InputError, match="damaged list of added tokens"):
        read_tokens(folder(tmp_path, tokenizer={"added_tokens": [{"id": 3}]}))


def test_of_a_loaded_tokenizer(tiny: ModuleType, tmp_path: Path) -> None:
    """The folder it came from counts, with the ends that the tokenizer itself does not name; its own word otherwise."""
    tiny.save_dense(tmp_path, "llama", eos_token_id=[7, 9])
    assert tokens_of(load_tokenizer(tmp_path)).ends == (0, 7, 9)
    in_memory = type(tiny.tokenizer())(tokenizer_object=tiny.tokenizer().backend_tokenizer, eos_token="<|endoftext|>")
    assert tokens_of(in_memory) == Tokens(ends=(0,))


def test_what_is_put_around_a_text(tiny: ModuleType) -> None:
    from copy import deepcopy

    from tokenizers.processors import TemplateProcessing

    tokenizer = deepcopy(tiny.tokenizer())
    assert put_around(tokenizer) == Around((), ())
    end = ("<|endoftext|>", 0)
    for single, around in (
        ("<|endoftext|> $A", Around((0,), ())),
        ("$A <|endoftext|>", Around((), (0,))),
        ("<|endoftext|> $A <|endoftext|>", Around((0,), (0,))),
        ("<|endoftext|> <|endoftext|> $A", Around((0, 0), ())),
    ):
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=[end])
        assert put_around(tokenizer) == around


@pytest.mark.parametrize(
    ("tokens", "first"),
    [(Tokens(begin=2, ends=(3,)), 2), (Tokens(ends=(3, 4)), 3), (Tokens(), 0), (Tokens(begin=0), 0)],
)
def test_the_first_token(tokens: Tokens, first: int) -> None:
    assert tokens.first == first


def test_names_of_chat_templates(tiny: ModuleType) -> None:
    from copy import deepcopy

    tokenizer = deepcopy(tiny.tokenizer())
    assert chat_templates(tokenizer) == {}
    tokenizer.chat_template = "x"
    assert chat_templates(tokenizer) == {"default": "x"}
    tokenizer.chat_template = {"rag": "y"}
    assert chat_templates(tokenizer) == {"rag": "y"}
