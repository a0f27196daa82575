"""Does the artifact cut text into the tokens its model was made for? Windows of token ids would never show it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...converter.checkpoint.reader import read_json
from ...converter.core.errors import InputError
from ...converter.model.gguf_parts import read_whole
from ...converter.model.loading import load_tokenizer
from ...converter.model.tokens import DEFAULT, Tokens, chat_templates, read_tokens, tokens_of
from ..backends.protocol import Backend

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBES = (
    "The history of the city begins with a river.",
    "  leading and trailing spaces  ",
    "Numbers: 0 12 345 6789 3.14159 -1e-5 1,000,000",
    "don't, it's, we'll, they've, I'm",
    "def factor(weight, rank):\n\treturn u[:, :rank] @ v[:rank]\n\n\n",
    "naïve café, Übergröße, façade, smørrebrød",
    "Привет, мир. 你好，世界。こんにちは。안녕하세요",
    "emoji 🙂🚀 and symbols ≤ ≥ → € £",
    "https://example.org/path?query=1&other=two#part",
    "UPPER lower MiXeD CamelCase snake_case kebab-case",
)
END = "(the tokens that end a text)"
BEGIN = "(the token that begins a text)"
ADDED = 256  # added tokens that are asked for


@dataclass(frozen=True)
class TokenizerCheck:
    """What came of comparing tokenizers.

    Attributes:
        texts: number of probe texts.
        differing: those that came out otherwise than in the reference.
    """

    texts: int
    differing: tuple[str, ...]


def check_tokenizer(
    backend: Backend, path: Path, reference: PreTrainedTokenizerBase, texts: Sequence[str] = PROBES
) -> TokenizerCheck | None:
    """Compare an artifact's tokenizer with the reference's, as the runtime uses it where the runtime has one.

    Args:
        backend: the open artifact.
        path: the artifact.
        reference: tokenizer of the model it was exported from.
        texts: what to tokenize; special tokens are never added.

    Returns:
        None where the artifact has no tokenizer.
    """
    tokenize = _tokenize(backend, path)
    if tokenize is None:
        return None
    stated = tokens_of(reference)
    differing = [text for text in texts if _without_begin(tokenize(text), stated.begin) != _expected(reference, text)]
    asked, wrong = _special(backend, path, stated)
    added = _added(backend, stated, reference)
    templates = _templates(backend, path, reference)
    differing += [*wrong, *(text for text, same in {**added, **templates}.items() if not same)]
    return TokenizerCheck(len(texts) + asked + len(added) + len(templates), tuple(differing))


def _templates(backend: Backend, path: Path, reference: PreTrainedTokenizerBase) -> dict[str, bool]:
    """What a chat template is called in words -> whether the artifact has the reference's own text of it.

    A model without a default has none in the artifact either: the runtime's own would take its place unseen.
    """
    own: Callable[[str], str | None] | None = getattr(backend, "chat_template", None)
    if own is None:
        held = chat_templates(load_tokenizer(path))
        own = held.get
    meant = chat_templates(reference)
    return {f"(the chat template {name!r})": own(name) == meant.get(name) for name in dict.fromkeys([*meant, DEFAULT])}


def _special(backend: Backend, path: Path, stated: Tokens) -> tuple[int, list[str]]:
    """How much was asked of the tokens that begin and end a text, and what of it came out otherwise.

    The runtime has to end at every token that the model's files name, and at no token besides that is text. Ends that
    a runtime adds by their spelling are special tokens of the model.
    """
    begin, ends = _as_runtime_has_them(backend, path)
    if not ends and (not stated.ends or not hasattr(backend, "special_tokens")):
        return 0, []
    usual = {stated.added[text] for text in stated.special if text in stated.added}
    wrong = [] if set(stated.ends) <= ends and ends <= {*stated.ends, *usual} else [END]
    if stated.begin is None or begin is None:
        return 1, wrong
    return 2, wrong + [BEGIN] * (begin != stated.begin)


def _as_runtime_has_them(backend: Backend, path: Path) -> tuple[int | None, frozenset[int]]:
    own: Callable[[], tuple[int | None, frozenset[int]]] | None = getattr(backend, "special_tokens", None)
    if own is not None:
        return own()
    if (path / "config.json").is_file():  # a checkpoint, read by torch
        found = read_tokens(path)
        return found.begin, frozenset(found.ends)
    return None, frozenset(_end_tokens(path))


def _added(backend: Backend, stated: Tokens, reference: PreTrainedTokenizerBase) -> dict[str, bool]:
    """Text of an added token -> whether the runtime reads it as that one token, where the reference does."""
    own: Callable[[str], list[int]] | None = getattr(backend, "tokenize_special", None)
    if own is None:
        return {}
    chosen = {text: stated.added[text] for text in sorted(stated.added)[:ADDED]}
    known = {text: index for text, index in chosen.items() if _expected(reference, text) == [index]}
    return {text: own(text) in ([index], [stated.begin, index]) for text, index in known.items()}


def _tokenize(backend: Backend, path: Path) -> Callable[[str], list[int]] | None:
    own: Callable[[str], list[int]] | None = getattr(backend, "tokenize", None)
    if own is not None:
        return own
    try:
        stored = load_tokenizer(path)
    except InputError:
        return None
    return lambda text: _expected(stored, text)


def _expected(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def _without_begin(ids: list[int], begin: int | None) -> list[int]:
    """Ids without the token that GenAI puts before every text."""
    return ids[1:] if ids and begin is not None and ids[0] == begin else ids


def _end_tokens(path: Path) -> set[int]:
    """Ids at which the runtime ends a text; empty where the artifact names none."""
    named: Any = None
    if path.is_file():
        metadata = read_whole(path).metadata
        named = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    elif (path / "genai_config.json").is_file():
        named = read_json(path / "genai_config.json").get("model", {}).get("eos_token_id")
    listed = named if isinstance(named, list) else [named]
    return {token for token in listed if isinstance(token, int)}
