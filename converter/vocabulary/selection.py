"""How often texts use each token, and a size -> the tokens that are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from ..core.errors import UsageError
from .tokenizer_file import TokenizerFile

UNUSUAL = 0.001
"""Share of a text's characters that may be of another script, in a name or a quotation."""


def kept_tokens(
    tokenizer: TokenizerFile, counts: NDArray[np.int64], needed: Collection[int], size: int | None, rows: int
) -> list[int]:
    """The ids that are kept, rising: those that any text needs, then the most frequent with all they are merged from.

    Args:
        tokenizer: of the model.
        counts: how often each id occurs in the texts (rows,).
        needed: ids that stay whatever the texts: what the configuration and chat templates name.
        size: of the new vocabulary; by default everything that the texts use, and no more. What is left over by tokens
            that occur is filled with other pieces: first those in characters that the texts are written in, of them the
            lowest ids, which are the first that a tokenizer learns.
        rows: of the embedding; ids beyond have none.

    Raises:
        UsageError: `size` is below what any text needs, or not smaller than the vocabulary.
    """
    pieces = tokenizer.pieces
    kept: set[int] = set()

    def closure(index: int) -> set[int]:
        if index not in pieces:
            return {index}
        return {tokenizer.ids[part] for part in tokenizer.parts(pieces[index]) if part in tokenizer.ids}

    def take(indices: Iterable[int]) -> None:
        for index in indices:
            if index not in kept and index < rows:
                more = closure(index) - kept
                if size is None or len(kept) + len(more) <= size:
                    kept.update(more)

    least: set[int] = set()
    for index in (*tokenizer.base, *needed):
        if index < rows:
            least |= closure(index)
    if size is not None and size < len(least):
        raise UsageError(
            f"vocabulary_size {size}: special tokens, bytes and what the model names take {len(least)} already"
        )
    if size is not None and size >= rows:
        raise UsageError(f"vocabulary_size {size}: the model's vocabulary has only {rows} rows")
    kept |= least
    order = np.lexsort((np.arange(len(counts)), -counts))
    take(int(index) for index in order[: int((counts > 0).sum())])
    if size is not None:
        usual = _usual_characters(pieces, counts)
        others = pieces.keys() - set(tokenizer.added.values())
        take(sorted(others, key=lambda index: (not usual.issuperset(pieces[index]), index)))
    return sorted(kept)


def _usual_characters(pieces: Mapping[int, str], counts: NDArray[np.int64]) -> set[str]:
    """The characters, or letters for bytes, that all but `UNUSUAL` of the texts consist of."""
    found: Counter[str] = Counter()
    for index in np.flatnonzero(counts).tolist():
        for character in pieces.get(index, ""):
            found[character] += int(counts[index])
    usual, seen, whole = set(), 0, sum(found.values())
    for character, count in found.most_common():
        if seen >= (1 - UNUSUAL) * whole:
            break
        usual.add(character)
        seen += count
    return usual


def count_tokens(ids: NDArray[np.int32], rows: int) -> NDArray[np.int64]:
    """How often each id below `rows` occurs in (n,) token ids: (rows,)."""
    found: NDArray[np.int64] = np.bincount(ids[ids < rows], minlength=rows).astype(np.int64)
    return found


def renumbered(tokenizer: TokenizerFile, kept: Collection[int]) -> Mapping[int, int]:
    """Old id -> new one, in the old order; added tokens that are no piece come last, where tokenizers look for them."""
    order = sorted(kept, key=lambda index: (index not in tokenizer.pieces, index))
    return {old: new for new, old in enumerate(order)}
