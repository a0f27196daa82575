"""Tokenizer: from a Hugging Face directory to GGUF's vocabulary keys."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...converter.core.errors import InputError
from ...converter.model.loading import load_tokenizer
from ...converter.model.tokens import DEFAULT, Tokens, chat_templates, put_around, read_tokens
from ...converter.vocabulary.tokenizer_file import merge_pairs
from .pretokenizers import pretokenizer_name

if TYPE_CHECKING:
    from gguf import GGUFWriter

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's token types
SPACE = "\u2581"  # sentencepiece's mark for a space
UNREACHABLE = -1e9  # score of a sentencepiece token that no merge makes
ENDS_BY_TEXT = frozenset(
    ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>")
)
"""Tokens that every llama.cpp takes for the end of a text by their spelling, whatever the file says."""
MORE_ENDS = ("eot", "eom")
"""Keys of ends beside the first."""


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp's tokenizer needs.

    Attributes:
        model: "gpt2" (byte-level BPE) or "llama" (sentencepiece).
        pre: name of the pre-tokenizer.
        tokens: text of every id, padded to the embedding's rows.
        types: llama.cpp's token type of every id.
        merges: BPE merges, best first; empty for sentencepiece.
        scores: sentencepiece scores; empty for byte-level BPE.
        special: role (bos, eos, unk, pad, eot, eom) -> id.
        add_bos, add_eos: whether encoding a text adds them.
        add_space_prefix: whether encoding puts a space before the text (sentencepiece).
        chat_templates: name -> Jinja template; the usual one is called "default".
        notes: what of the special tokens the file cannot say, a line each.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    scores: tuple[float, ...]
    special: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_templates: Mapping[str, str]
    notes: tuple[str, ...] = ()


def read_vocabulary(path: Path, rows: int) -> Vocabulary:
    """Read the tokenizer of a checkpoint directory.

    Args:
        path: the directory (tokenizer.json, or whatever else transformers reads).
        rows: rows of the embedding; ids without a token are filled up as unused.

    Raises:
        InputError: no tokenizer, more tokens than rows, or a kind that llama.cpp does not have.
    """
    tokenizer = _load(path)
    data: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    if data["model"]["type"] != "BPE":
        raise InputError(f"{path}: tokenizer model {data['model']['type']!r} is not supported, only BPE")
    sentencepiece = bool(data["model"].get("byte_fallback"))
    tokens, types = _tokens(data, rows, path)
    ids = {token: index for index, token in enumerate(tokens)}
    stated = read_tokens(path, find=ids.get, rows=rows)
    special, notes = _special(stated, tokens, default="" if sentencepiece else tokens[11] if rows > 11 else "")
    around, templates = put_around(tokenizer), chat_templates(tokenizer)
    begin, end = ((special[role],) if role in special else () for role in ("bos", "eos"))
    if around.before not in ((), begin) or around.after not in ((), end):
        put = [tokens[index] for index in (*around.before, *around.after)]
        notes = (*notes, f"the tokenizer puts {put} around every text, which a GGUF file cannot say")
    if templates and DEFAULT not in templates:
        named = ", ".join(sorted(templates))
        notes = (*notes, f"none of the chat templates ({named}) is the default: llama.cpp has to be given one of them")
    merges = list(merge_pairs(data["model"]))
    return Vocabulary(
        model="llama" if sentencepiece else "gpt2",
        pre="default" if sentencepiece else pretokenizer_name(data),
        tokens=tokens,
        types=tuple(_sentencepiece_types(tokens, types, special) if sentencepiece else types),
        merges=() if sentencepiece else tuple(" ".join(map(_escape, pair)) for pair in merges),
        scores=_scores(tokens, merges) if sentencepiece else (),
        special=special,
        add_bos=around.before == begin != (),
        add_eos=around.after == end != (),
        add_space_prefix=sentencepiece and _prepends_space(data),
        chat_templates=templates,
        notes=notes,
    )


def add_vocabulary(writer: GGUFWriter, of: Vocabulary) -> None:
    """Write the vocabulary."""
    writer.add_tokenizer_model(of.model)
    writer.add_tokenizer_pre(of.pre)
    writer.add_token_list(list(of.tokens))
    writer.add_token_types(list(of.types))
    if of.scores:
        writer.add_token_scores(list(of.scores))
        writer.add_add_space_prefix(of.add_space_prefix)
    else:
        writer.add_token_merges(list(of.merges))
    for role, index in of.special.items():
        getattr(writer, f"add_{role}_token_id")(index)
    writer.add_add_bos_token(of.add_bos)
    writer.add_add_eos_token(of.add_eos)
    _add_templates(writer, of.chat_templates)


def _add_templates(writer: GGUFWriter, templates: Mapping[str, str]) -> None:
    """As gguf-py's `add_chat_template` does, which lists their names in another order every time."""
    from gguf import Keys

    named = {template_name(name): text for name, text in templates.items() if name != DEFAULT}
    if named:
        writer.add_array(Keys.Tokenizer.CHAT_TEMPLATES, sorted(named))
    for name in sorted(named):
        writer.add_string(Keys.Tokenizer.CHAT_TEMPLATE_N.format(name=name), named[name])
    if DEFAULT in templates:
        writer.add_string(Keys.Tokenizer.CHAT_TEMPLATE, templates[DEFAULT])


def template_name(name: str) -> str:
    """What a chat template is called in a GGUF file."""
    return re.sub("[^A-Za-z0-9]", "_", name)


def _special(stated: Tokens, tokens: Sequence[str], default: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """Role -> id, and what the file cannot say.

    Args:
        stated: the folder's special tokens.
        tokens: text of every id.
        default: text of the token that llama.cpp takes for the end where a file names none.
    """
    first = {"bos": stated.begin, "eos": next(iter(stated.ends), None), "unk": stated.unknown, "pad": stated.pad}
    others = [end for end in stated.ends[1:] if tokens[end] not in ENDS_BY_TEXT]
    found = {**first, **dict(zip(MORE_ENDS, others, strict=False))}
    notes = []
    if not stated.ends:
        taken = f"; llama.cpp takes {default!r} for it" if default else ""
        notes.append(f"no file of the model names a token that ends a text{taken}: add eos_token_id to config.json")
    if left := others[len(MORE_ENDS) :]:
        notes.append(f"a GGUF file has no place for these further ends of a text: {[tokens[end] for end in left]}")
    return {role: index for role, index in found.items() if index is not None}, tuple(notes)


def _load(path: Path) -> Any:
    tokenizer: Any = load_tokenizer(path)
    if not tokenizer.is_fast:
        raise InputError(f"{path}: the tokenizer has no tokenizer.json and cannot be converted to one")
    return tokenizer


def _tokens(data: Mapping[str, Any], rows: int, path: Path) -> tuple[tuple[str, ...], list[int]]:
    by_id: dict[int, str] = {index: token for token, index in data["model"]["vocab"].items()}
    types = dict.fromkeys(by_id, NORMAL)
    for added in data.get("added_tokens", ()):
        by_id[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    if by_id and max(by_id) >= rows:
        raise InputError(f"{path}: the tokenizer has token id {max(by_id)}, but the embedding only {rows} rows")
    tokens = tuple(by_id.get(index, f"[PAD{index}]") for index in range(rows))
    return tokens, [types.get(index, UNUSED) for index in range(rows)]


def _sentencepiece_types(tokens: Sequence[str], types: list[int], special: Mapping[str, int]) -> list[int]:
    found = list(types)
    for index, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            found[index] = BYTE
    if "unk" in special:
        found[special["unk"]] = UNKNOWN
    return found


def _scores(tokens: Sequence[str], merges: Sequence[Sequence[str]]) -> tuple[float, ...]:
    """Sentencepiece scores that make llama.cpp merge in tokenizer.json's order: minus the rank of the first merge."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    return tuple(float(-ranks[token]) if token in ranks else UNREACHABLE for token in tokens)


def _prepends_space(data: Mapping[str, Any]) -> bool:
    """Whether the text gets a leading space mark: a Prepend normalizer, or a Metaspace that prepends."""
    normalizer, splitter = data.get("normalizer") or {}, data.get("pre_tokenizer") or {}
    steps = [*normalizer.get("normalizers", [normalizer]), *splitter.get("pretokenizers", [splitter])]
    return any(
        step.get("type") == "Prepend"
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )


def _escape(part: str) -> str:
    """A merge is stored as "left right": a space inside a part is written as the byte-level alphabet writes it."""
    return part.replace(" ", chr(ord(" ") + 256))
