"""Does a model repeat itself? Token sequences -> figures; a perplexity says nothing about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

SPAN = 4  # tokens of the spans whose repetition is counted


@dataclass(frozen=True)
class Degeneration:
    """Of several continuations; shares are means over those that are long enough, nan where none is.

    Attributes:
        distinct_1, distinct_2: different among all spans of 1 and 2 tokens, 0 to 1.
        repetition: share of spans of 4 tokens that occurred before in the same text, 0 to 1.
        longest_repeat: tokens of the longest span that occurs twice in a text, overlaps counting.
        tokens: of all texts.
        repetition_error: standard error of the mean over texts; nan for less than two.
        repetitions: `repetition` of every text, nan for one that is too short to tell.
    """

    distinct_1: float
    distinct_2: float
    repetition: float
    longest_repeat: int
    tokens: int
    repetition_error: float = math.nan
    repetitions: tuple[float, ...] = ()


def degeneration(texts: Sequence[Sequence[int]]) -> Degeneration:
    """Measure token sequences; a text that ended at once counts for nothing but `tokens`."""
    repetitions = tuple(1 - distinct(text, SPAN) for text in texts)
    repetition, error = mean_and_error(repetitions)
    return Degeneration(
        distinct_1=mean_and_error([distinct(text, 1) for text in texts])[0],
        distinct_2=mean_and_error([distinct(text, 2) for text in texts])[0],
        repetition=repetition,
        longest_repeat=max((longest_repeat(text) for text in texts), default=0),
        tokens=sum(map(len, texts)),
        repetition_error=error,
        repetitions=repetitions,
    )


def repetition_increase(ours: Degeneration, theirs: Degeneration) -> tuple[float, float]:
    """How much more one model repeats itself than another, text by text, and the standard error of that.

    Args:
        ours, theirs: of continuations of the same prompts.

    Returns:
        nan, nan where no prompt has two texts that are long enough.
    """
    return mean_and_error([a - b for a, b in zip(ours.repetitions, theirs.repetitions, strict=True)])


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of the values that are numbers, and its standard error; nan where too few are."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan, math.nan
    mean = fmean(known)
    return mean, stdev(known, mean) / math.sqrt(len(known)) if len(known) > 1 else math.nan


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
