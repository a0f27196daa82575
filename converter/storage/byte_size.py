"""Sizes as people write them: 100MB, 1.5 GiB, 4096."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..core.errors import UsageError

UNITS = {"": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(text: str) -> float | None:
    """ "100MB", "1.5 GiB", "4096" -> bytes; None where it is none of that."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", text)
    unit = match and match[2].lower()
    return None if match is None or unit not in UNITS else float(match[1]) * UNITS[unit]


@dataclass(frozen=True)
class MemoryLimits:
    """Bytes that a process may take, of the machine's memory and of its GPU's; None where nobody set a limit."""

    process: int | None = None
    device: int | None = None

    def options(self) -> list[str]:
        """As the command line takes them."""
        given = {"--max-memory": self.process, "--max-device-memory": self.device}
        return [word for option, limit in given.items() if limit is not None for word in (option, str(limit))]


NO_LIMITS = MemoryLimits()


def memory_limit(text: str | None) -> int | None:
    """The bytes of a --max-memory that was given.

    Raises:
        UsageError: not a size, or none at all.
    """
    return _limit("--max-memory", text)


def device_limit(text: str | None) -> int | None:
    """The bytes of a --max-device-memory that was given.

    Raises:
        UsageError: not a size, or none at all.
    """
    return _limit("--max-device-memory", text)


def _limit(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    bytes = parse_bytes(text)
    if bytes is None or not 1 <= bytes < 2**63:
        raise UsageError(f"{option} {text}: expected a size such as 8GB or 512MiB")
    return int(bytes)
