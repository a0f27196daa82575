"""Does a model repeat itself? Token sequences -> figures; a perplexity says nothing about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SPAN = 4  # tokens of the spans whose repetition is counted


@dataclass(frozen=True)
class Degeneration:
    """Of several continuations; shares are means over those that are long enough, nan where none is.

    Attributes:
        distinct_1, distinct_2: different among all spans of 1 and 2 tokens, 0 to 1.
        repetition: share of spans of 4 tokens that occurred before in the same text, 0 to 1.
        longest_repeat: tokens of the longest span that occurs twice in a text, overlaps counting.
        tokens: of all texts.
    """

    distinct_1: float
    distinct_2: float
    repetition: float
    longest_repeat: int
    tokens: int


def degeneration(texts: Sequence[Sequence[int]]) -> Degeneration:
    """Measure token sequences; a text that ended at once counts for nothing but `tokens`."""
    return Degeneration(
        distinct_1=_mean_distinct(texts, 1),
        distinct_2=_mean_distinct(texts, 2),
        repetition=1 - _mean_distinct(texts, SPAN),
        longest_repeat=max((longest_repeat(text) for text in texts), default=0),
        tokens=sum(map(len, texts)),
    )


def distinct(text: Sequence[int], size: int) -> float:
    """Different / all spans of `size` tokens; nan for a text that is shorter."""
    spans = [tuple(text[start : start + size]) for start in range(len(text) - size + 1)]
    return len(set(spans)) / len(spans) if spans else math.nan


def longest_repeat(text: Sequence[int]) -> int:
    """Length of the longest span that begins at two places of the text. Time: len(text) squared."""
    longest, before = 0, [0] * (len(text) + 1)
    for i in range(len(text)):
        row = [0] * (len(text) + 1)
        for j in range(i):
            if text[i] == text[j]:
                row[j + 1] = before[j] + 1
                longest = max(longest, row[j + 1])
        before = row
    return longest


def _mean_distinct(texts: Sequence[Sequence[int]], size: int) -> float:
    shares = [share for text in texts if not math.isnan(share := distinct(text, size))]
    return sum(shares) / len(shares) if shares else math.nan
