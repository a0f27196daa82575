"""Evaluation text -> the token windows that every backend is measured on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..converter.errors import InputError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def evaluation_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, *, windows: int, length: int
) -> NDArray[np.int32]:
    """Cut `text` into windows of token ids, spread evenly and without overlap.

    The whole text is tokenised once, without special tokens, and cut into C = tokens // length adjoining windows; every
    (C // windows)-th of them is taken, from the first on. So the windows cover the whole text, do not depend on any
    random number, and a longer text moves them apart. A text of fewer than `windows` windows gives all it has.

    Args:
        tokenizer: the tokenizer of the reference model.
        text: the evaluation text.
        windows: number of windows wanted.
        length: tokens per window; at least 2, since one token predicts nothing.

    Returns:
        Token ids (N, length) with 1 <= N <= windows.

    Raises:
        UsageError: `windows` or `length` too small.
        InputError: the text is shorter than one window.
    """
    if windows < 1 or length < 2:
        raise UsageError(f"evaluation needs at least 1 window of 2 tokens, not {windows} of {length}")
    ids = np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int32)
    count = len(ids) // length
    if count == 0:
        raise InputError(
            f"evaluation text has {len(ids)} tokens, but one window needs {length}; give more text or a shorter window"
        )
    taken = min(windows, count)
    starts = np.arange(taken) * (count // taken) * length
    return np.stack([ids[start : start + length] for start in starts])
