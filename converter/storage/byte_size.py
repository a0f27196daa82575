"""Sizes as people write them: 100MB, 1.5 GiB, 4096."""

from __future__ import annotations

import re

from ..errors import UsageError

UNITS = {"": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(text: str) -> float | None:
    """ "100MB", "1.5 GiB", "4096" -> bytes; None where it is none of that."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", text)
    unit = match and match[2].lower()
    return None if match is None or unit not in UNITS else float(match[1]) * UNITS[unit]


def memory_limit(text: str | None) -> int | None:
    """The bytes of a --max-memory that was given.

    Raises:
        UsageError: not a size, or none at all.
    """
    if text is None:
        return None
    bytes = parse_bytes(text)
    if bytes is None or not 1 <= bytes < 2**63:
        raise UsageError(f"--max-memory {text}: expected a size such as 8GB or 512MiB")
    return int(bytes)
