"""Whether a tokenizer still writes any text: lines in many scripts, there and back."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import InputError
from ..storage.documents import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SCRIPTS = {
    "Latin": (0x00C0, 0x024F),
    "Greek": (0x0370, 0x03FF),
    "Cyrillic": (0x0400, 0x04FF),
    "Armenian": (0x0531, 0x0587),
    "Hebrew": (0x05D0, 0x05EA),
    "Arabic": (0x0621, 0x064A),
    "Devanagari": (0x0905, 0x0939),
    "Bengali": (0x0985, 0x09B9),
    "Gurmukhi": (0x0A05, 0x0A39),
    "Gujarati": (0x0A85, 0x0AB9),
    "Tamil": (0x0B85, 0x0BB9),
    "Telugu": (0x0C05, 0x0C39),
    "Kannada": (0x0C85, 0x0CB9),
    "Malayalam": (0x0D05, 0x0D39),
    "Sinhala": (0x0D85, 0x0DC6),
    "Thai": (0x0E01, 0x0E2E),
    "Lao": (0x0E81, 0x0EAE),
    "Tibetan": (0x0F40, 0x0F6C),
    "Georgian": (0x10D0, 0x10F0),
    "Ethiopic": (0x1200, 0x1248),
    "Cherokee": (0x13A0, 0x13F4),
    "Khmer": (0x1780, 0x17A2),
    "Hiragana": (0x3041, 0x3096),
    "Katakana": (0x30A1, 0x30FA),
    "Han": (0x4E00, 0x9FFF),
    "Hangul": (0xAC00, 0xD7A3),
    "Gothic": (0x10330, 0x1034A),
    "Emoji": (0x1F600, 0x1F64F),
}
"""Script -> its first and last code point; what is no letter or symbol in between is passed over."""
LINES = 80  # of every script
PLAIN = ("", " ", "a", "  two  spaces\tand a tab", "x = y_1 + 3.14159  # 0x1F\n\n    return", "\r\n", "</s><unk>[UNK]")


def script_lines(seed: int = 0) -> list[str]:
    """`LINES` lines of random words in every script, and a few of code and blanks."""
    random, lines = np.random.default_rng(seed), list(PLAIN)
    for first, last in SCRIPTS.values():
        letters = [chr(code) for code in range(first, last + 1) if unicodedata.category(chr(code))[0] in "LS"]
        for _ in range(LINES):
            places = [random.integers(len(letters), size=length) for length in random.integers(1, 9, size=5)]
            lines.append(" ".join("".join(letters[place] for place in word) for word in places))
    return lines


def check_round_trip(old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase, lines: Sequence[str]) -> None:
    """Hold what a tokenizer makes of lines and back against what another makes of them, normalization included.

    Raises:
        InputError: they differ; names the first line.
    """
    for line in lines:
        before, after = (_back(tokenizer, line) for tokenizer in (old, new))
        if before != after:
            raise InputError(
                f"keep_vocabulary: with fewer tokens {shown(line)} comes back as {shown(after)}; this tokenizer cannot "
                "be cut without losing text"
            )


def _back(tokenizer: PreTrainedTokenizerBase, line: str) -> str:
    ids = tokenizer(line, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
