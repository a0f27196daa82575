"""tokenizer.json as data: pieces, merges, added tokens, and which tokens any text can fall back to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..checkpoint.reader import read_json
from ..core.errors import InputError
from ..model.tokens import TOKENIZER
from ..storage.documents import shown

KINDS = ("BPE", "Unigram")
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer whose vocabulary can be cut.

    Attributes:
        data: of tokenizer.json.
        kind: one of `KINDS`.
        ids: piece of the model -> id.
        added: text of an added token -> id.
        special: ids of added tokens that are no text.
    """

    data: Mapping[str, Any]
    kind: str
    ids: Mapping[str, int]
    added: Mapping[str, int]
    special: frozenset[int]

    @property
    def model(self) -> Mapping[str, Any]:
        """Its model part."""
        model: Mapping[str, Any] = self.data["model"]
        return model

    @cached_property
    def pieces(self) -> Mapping[int, str]:
        """Id -> piece of the model."""
        return {index: piece for piece, index in self.ids.items()}

    @cached_property
    def merges(self) -> Mapping[tuple[str, str], int]:
        """Pair of pieces -> rank, the best is 0; empty for Unigram."""
        return {pair: rank for rank, pair in reversed(list(enumerate(merge_pairs(self.model))))}

    @property
    def byte_fallback(self) -> bool:
        """Whether what has no piece is written as bytes."""
        return bool(self.model.get("byte_fallback")) and all(token in self.ids for token in BYTE_TOKENS)

    @cached_property
    def byte_level(self) -> bool:
        """Whether its pieces are written in the alphabet of 256 bytes."""
        return any(part.get("type") == "ByteLevel" for part in _parts(self.data.get("pre_tokenizer"))) and all(
            letter in self.ids for letter in byte_alphabet()
        )

    @cached_property
    def base(self) -> frozenset[int]:
        """Ids without which some text could not be written: bytes, or every single character; and special tokens."""
        unknown = str(self.model.get("unk_token"))
        found = {self.ids[unknown]} if unknown in self.ids else set()
        if self.kind == "Unigram" and type(self.model.get("unk_id")) is int:
            found.add(self.model["unk_id"])
        if self.byte_level:
            found |= {self.ids[letter] for letter in byte_alphabet()}
        elif self.byte_fallback:
            found |= {self.ids[token] for token in BYTE_TOKENS}
            rules = [self.data.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]
            found |= {
                self.ids[text] for text in _texts(rules) if len(text) == 1 and text in self.ids
            }  # marks of blanks
        else:
            found |= {index for piece, index in self.ids.items() if len(piece) == 1}
        return frozenset(found | self.special)

    def parts(self, piece: str) -> frozenset[str]:
        """Everything that merging makes on the way from characters to a piece, itself included.

        What merges would not make, which only happens where whole words are looked up first, is by itself.
        """
        made = {piece}
        if self.kind != "BPE":
            return frozenset(made)
        state = list(piece)
        while len(state) > 1:
            rank, at = min((self.merges.get(pair, len(self.merges)), at) for at, pair in enumerate(pairwise(state)))
            if rank == len(self.merges):
                return frozenset({piece})
            state[at : at + 2] = [state[at] + state[at + 1]]
            made.add(state[at])
        return frozenset(made | set(piece) & self.ids.keys())


def read_tokenizer_file(folder: Path) -> TokenizerFile:
    """Read the tokenizer of a model folder.

    Raises:
        InputError: there is no tokenizer.json, it is damaged, or its kind has no vocabulary that can be cut.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        raise InputError(f"{folder}: no {TOKENIZER}, whose vocabulary could be cut")
    data = read_json(path)
    model = data.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if kind not in KINDS:
        raise InputError(f"{path}: a vocabulary of kind {shown(kind)} cannot be cut, only {' and '.join(KINDS)}")
    assert isinstance(model, dict)
    try:
        if kind == "BPE":
            ids = {str(piece): int(index) for piece, index in model["vocab"].items()}
        else:
            ids = {str(entry[0]): index for index, entry in enumerate(model["vocab"])}
        tokens = data.get("added_tokens") or []
        added = {str(token["content"]): int(token["id"]) for token in tokens}
        special = frozenset(int(token["id"]) for token in tokens if token["special"])
        found = TokenizerFile(data, str(kind), ids, added, special)
        _ = found.merges
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise InputError(f"{path}: damaged") from None
    if kind == "BPE" and (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")):
        raise InputError(f"{path}: pieces with a prefix or suffix of their own cannot be cut")
    return found


def merge_pairs(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The merges of a BPE model, best first, written as pairs or as texts."""
    for merge in model.get("merges") or ():
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        yield str(first), str(second)


def byte_alphabet() -> list[str]:
    """The letter for each of 256 bytes in byte-level BPE: itself where that is printable, else one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _texts(rules: Any) -> Iterator[str]:
    """Every text in rules, which write and read marks such as that of a blank; bytes in their place would stay."""
    if isinstance(rules, str):
        yield rules
    elif isinstance(rules, (dict, list)):
        for inner in rules.values() if isinstance(rules, dict) else rules:
            yield from _texts(inner)


def _parts(part: Any) -> Iterable[Mapping[str, Any]]:
    """A pre-tokenizer, and those it is a sequence of."""
    if isinstance(part, dict):
        yield part
        for inner in part.get("pretokenizers") or ():
            yield from _parts(inner)
