"""Text from files on its way to a terminal: one line, of bounded length, and nothing that steers the terminal."""

from __future__ import annotations

LONGEST = 2000


def printable(text: str, limit: int = LONGEST) -> str:
    """The text on one line of at most `limit` letters; escapes, reversed writing and half letters are spelt out."""
    words = " ".join(text[: 4 * limit].split())
    spelt = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in words)
    return spelt if len(spelt) <= limit else spelt[: limit - 3] + "..."
