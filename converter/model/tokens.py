"""The special tokens of a model folder, read once, from what its files state, for every format and the gates alike.

A file that states an id is believed in this order: the tokenizer's files, generation_config.json, config.json. What
none of them states is unknown: the defaults of configuration classes are ids of other models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from ..checkpoint.reader import read_json
from ..core.errors import InputError
from ..storage.links import check_links

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER, TOKENIZER_CONFIG, SPECIAL_MAP = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
GENERATION, CONFIG = "generation_config.json", "config.json"
LANGUAGE = "text_config"  # key of config.json: the language model's part of a vision-language model's
PROBE = "a"
DEFAULT = "default"
ROLES = ("bos", "eos", "pad", "unk")
Find = Callable[[str], int | None]


@dataclass(frozen=True)
class Tokens:
    """What a folder's files say of special tokens.

    Attributes:
        begin: id of the token that begins a text.
        ends: ids of the tokens that end a text; the tokenizer's own is the first.
        pad: id of the token that fills up.
        unknown: id of the token for what has none.
        added: text of every token added to the vocabulary -> id.
        special: those of `added` that are no text.
    """

    begin: int | None = None
    ends: tuple[int, ...] = ()
    pad: int | None = None
    unknown: int | None = None
    added: Mapping[str, int] = field(default_factory=dict)
    special: frozenset[str] = frozenset()

    @property
    def first(self) -> int:
        """The token that a text from nothing begins with: the one that begins a text, else one that ends it, else 0."""
        return next((token for token in (self.begin, *self.ends) if token is not None), 0)


def read_tokens(folder: Path, *, find: Find | None = None, rows: int | None = None) -> Tokens:
    """Read a folder's special tokens.

    Args:
        folder: of a checkpoint, or of an export with tokenizer files.
        find: text of a token -> its id, where tokenizer.json is not what the ids are looked up in.
        rows: of the embedding; an id beyond them is never met, and counts as not stated.

    Raises:
        InputError: a file is not JSON.
    """
    check_links(folder)
    vocabulary = _json(folder / TOKENIZER)
    added = _added(vocabulary)
    texts = [_json(folder / TOKENIZER_CONFIG), _json(folder / SPECIAL_MAP)]
    config = _json(folder / CONFIG)
    inner = config.get(LANGUAGE)
    stated = [_json(folder / GENERATION), config, inner if isinstance(inner, dict) else {}]
    look = find or _finder(vocabulary, added, texts[0])

    def valid(value: Any) -> TypeGuard[int]:
        return type(value) is int and value >= 0 and (rows is None or value < rows)

    def named(role: str) -> int | None:
        for file in texts:
            text = _content(file.get(f"{role}_token"))
            if text is not None and (index := look(text)) is not None and valid(index):
                return index
        return None

    def numbered(role: str) -> list[int]:
        for file in stated:
            value = file.get(f"{role}_token_id")
            if found := [index for index in (value if isinstance(value, list) else [value]) if valid(index)]:
                return found
        return []

    def one(role: str) -> int | None:
        index = named(role)
        return index if index is not None else next(iter(numbered(role)), None)

    own = named("eos")
    ends = dict.fromkeys([*([] if own is None else [own]), *numbered("eos")])
    return Tokens(
        begin=one("bos"),
        ends=tuple(ends),
        pad=one("pad"),
        unknown=one("unk"),
        added={text: index for text, (index, _) in added.items() if valid(index)},
        special=frozenset(text for text, (_, special) in added.items() if special),
    )


def tokens_of(tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """The special tokens of the folder that a tokenizer was loaded from; its own word where it is from none."""
    folder = Path(str(tokenizer.name_or_path or "."))
    if tokenizer.name_or_path and folder.is_dir():

        def find(text: str) -> int | None:
            index = tokenizer.get_vocab().get(text)
            return None if index is None else int(index)

        found = read_tokens(folder, find=None if (folder / TOKENIZER).is_file() else find)
        if found.ends or found.begin is not None:
            return found
    end, begin = tokenizer.eos_token_id, tokenizer.bos_token_id
    return Tokens(begin=None if begin is None else int(begin), ends=() if end is None else (int(end),))


@dataclass(frozen=True)
class Around:
    """The tokens that a tokenizer puts before and after every text, unless it is told not to."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def put_around(tokenizer: PreTrainedTokenizerBase) -> Around:
    """Ask a tokenizer what it puts around a text."""
    plain = [int(token) for token in tokenizer(PROBE, add_special_tokens=False)["input_ids"]]
    whole = [int(token) for token in tokenizer(PROBE)["input_ids"]]
    more = len(whole) - len(plain)
    begin = next((at for at in range(more + 1) if whole[at : at + len(plain)] == plain), 0)
    return Around(tuple(whole[:begin]), tuple(whole[begin + len(plain) :]))


def chat_templates(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Name -> Jinja template of a tokenizer; the one that is used where none is asked for is called `DEFAULT`."""
    found: Any = getattr(tokenizer, "chat_template", None)
    if not found:
        return {}
    return {DEFAULT: found} if isinstance(found, str) else dict(found)


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _added(vocabulary: Mapping[str, Any]) -> dict[str, tuple[int, bool]]:
    """Text -> id and whether it is special, of the tokens added to a tokenizer.json."""
    found = vocabulary.get("added_tokens")
    try:
        return {str(token["content"]): (int(token["id"]), bool(token["special"])) for token in found or ()}
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{TOKENIZER}: damaged list of added tokens ({json.dumps(found)[:60]})") from None


def _finder(vocabulary: Mapping[str, Any], added: Mapping[str, tuple[int, bool]], said: Mapping[str, Any]) -> Find:
    """Looks a text up in tokenizer.json, else among the added tokens of tokenizer_config.json."""
    model, decoder = vocabulary.get("model"), said.get("added_tokens_decoder")
    words = model.get("vocab") if isinstance(model, dict) else None
    listed = decoder.items() if isinstance(decoder, dict) else ()
    known = {text: int(index) for index, token in listed if index.isdecimal() and (text := _content(token))}

    def find(text: str) -> int | None:
        if text in added:
            return added[text][0]
        if isinstance(words, dict) and type(words.get(text)) is int:
            return int(words[text])
        return known.get(text)

    return find


def _content(value: Any) -> str | None:
    """The text of a token, written as such or as an object."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) and text else None
