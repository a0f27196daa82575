"""Evaluation text -> the token windows that every backend is measured on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...converter.core.errors import InputError, UsageError
from ...converter.model.tokens import put_around, tokens_of
from ...converter.statistics.calibration import tokenize
from ...converter.texts.corpus import Corpus, Counts
from .windows import Windows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = NDArray[np.int32]


def evaluation_windows(
    tokenizer: PreTrainedTokenizerBase, text: str | Corpus, *, windows: int, length: int, stride: int | None = None
) -> Windows:
    """Cut `text` into windows of token ids. No random number takes part.

    The whole text is tokenized once, without special tokens. Without `stride` it is cut into C = tokens // length
    adjoining windows; every (C // windows)-th of them is taken, from the first on: the windows cover the whole text,
    and a longer text moves them apart. Every prediction counts.

    With `stride` S, windows begin every S tokens from the first on, and each but the first is scored on its last S
    predictions: every token counts once, with at least length - S tokens of context.

    Args:
        tokenizer: the tokenizer of the reference model.
        text: the evaluation text, with or without what is known of it.
        windows: number of windows wanted; a shorter text gives all it has.
        length: tokens per window; at least 2, since one token predicts nothing.
        stride: 1 <= stride < length.

    Raises:
        UsageError: `windows`, `length` or `stride` out of range.
        InputError: the text is shorter than one window.
    """
    if windows < 1 or length < 2:
        raise UsageError(f"evaluation needs at least 1 window of 2 tokens, not {windows} of {length}")
    if stride is not None and not 1 <= stride < length:
        raise UsageError(f"an evaluation stride lies between 1 and the window's length {length}, not {stride}")
    ids = _tokenized(tokenizer, text, length)
    counts = _counts(text, ids)
    if stride is None:
        count = len(ids) // length
        taken = min(windows, count)
        whole = Windows.whole(_cut(ids, np.arange(taken) * (count // taken) * length, length))
        return replace(whole, drawn_from=counts)
    taken = min(windows, (len(ids) - length) // stride + 1)
    first = np.full(taken, length - 1 - stride, dtype=np.int32)
    first[0] = 0
    return Windows(_cut(ids, np.arange(taken) * stride, length), first, counts)


def llama_cpp_windows(tokenizer: PreTrainedTokenizerBase, text: str | Corpus, *, windows: int, length: int) -> Windows:
    """The windows of llama.cpp's `llama-perplexity -c LENGTH --chunks WINDOWS`, for figures that compare with its own.

    Adjoining chunks from the text's beginning; rows length // 2 and after are scored. Where the tokenizer begins a text
    with a token of its own, so does the text, and that token replaces the first one of every chunk.

    Args, raises: as `evaluation_windows`; llama.cpp needs a text of two chunks.
    """
    if windows < 1 or length < 4:
        raise UsageError(f"llama.cpp's windows have at least 4 tokens, not {length}")
    begin = _begin_token(tokenizer)
    ids = _tokenized(tokenizer, text, 2 * length)
    counts = _counts(text, ids)
    if begin is not None:
        ids = np.concatenate([np.array([begin], dtype=np.int32), ids])
    taken = min(windows, len(ids) // length)
    tokens = _cut(ids, np.arange(taken) * length, length)
    if begin is not None:
        tokens[:, 0] = begin
    return Windows(tokens, np.full(taken, length // 2, dtype=np.int32), counts)


def _counts(text: str | Corpus, ids: Tokens) -> Counts | None:
    return None if isinstance(text, str) else Counts(text.documents, len(ids), text.skipped)


def _tokenized(tokenizer: PreTrainedTokenizerBase, text: str | Corpus, needed: int) -> Tokens:
    ids = tokenize(tokenizer, text if isinstance(text, str) else text.text)
    if len(ids) < needed:
        raise InputError(
            f"evaluation text has {len(ids)} tokens, but one window needs {needed}; give more text or a shorter window"
        )
    return ids


def _begin_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token the tokenizer puts before every text, if it does."""
    begin = tokens_of(tokenizer).begin
    return begin if begin is not None and put_around(tokenizer).before == (begin,) else None


def _cut(ids: Tokens, starts: NDArray[np.int64], length: int) -> Tokens:
    return np.stack([ids[start : start + length] for start in starts])
