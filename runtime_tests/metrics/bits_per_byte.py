"""Bits per byte: what a text costs whichever pieces a tokenizer cuts it into."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...converter.core.errors import InputError
from ...converter.core.progress import Advance
from ...converter.model.tokens import tokens_of
from ..backends.protocol import Backend
from .perplexity import token_losses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class BitsPerByte:
    """Losses of passages of a text.

    Attributes:
        bits: of each passage (P,).
        bytes: in UTF-8 (P,).
        tokens: in all.
    """

    bits: NDArray[np.float64]
    bytes: NDArray[np.int64]
    tokens: int

    @property
    def value(self) -> float:
        """Bits per byte of all passages together."""
        return float(self.bits.sum() / self.bytes.sum())

    def above(self, other: BitsPerByte) -> tuple[float, float]:
        """How much more than another of the same passages, and its standard error over passages."""
        mean = self.bytes.mean()
        each = (self.bits - other.bits - (self.value - other.value) * self.bytes) / mean
        error = math.sqrt(float(each.var(ddof=1)) / len(each)) if len(each) > 1 else math.nan
        return self.value - other.value, error


def passages(text: str, count: int, characters: int) -> list[str]:
    """Pieces of a text, evenly spaced, that begin and end between words; no random number takes part.

    Args:
        text: at least one piece long.
        count: wanted; a shorter text gives all it has.
        characters: of a piece, at most.

    Raises:
        InputError: the text is empty.
    """
    taken = max(1, min(count, len(text) // characters))
    found = []
    for index in range(taken):
        start = index * (len(text) // taken)
        if start:
            space = text.find(" ", start, start + characters)
            start = start if space < 0 else space + 1
        piece = text[start : start + characters]
        end = piece.rfind(" ")
        found.append(piece[:end] if end > characters // 2 else piece)
    found = [piece for piece in found if piece]
    if not found:
        raise InputError("evaluation text is empty")
    return found


def bits_per_byte(
    backend: Backend,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    advance: Advance = lambda step: None,
) -> BitsPerByte:
    """Score every byte of every text, each from the token that begins texts.

    Args:
        backend: the model.
        tokenizer: its own.
        texts: passages.
        advance: told about each.
    """
    first, bits, sizes, tokens = tokens_of(tokenizer).first, [], [], 0
    for text in texts:
        ids = np.array([first, *tokenizer(text, add_special_tokens=False)["input_ids"]], dtype=np.int32)
        losses = token_losses(backend.window_logits(ids)[:-1], ids[1:])
        bits.append(float(losses.sum()) / math.log(2))
        sizes.append(len(text.encode("utf-8")))
        tokens += len(ids) - 1
        advance(1)
    return BitsPerByte(np.array(bits), np.array(sizes, dtype=np.int64), tokens)
