"""What a command gives back: `cli.py` prints it and sets the exit code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import LowRankError


@dataclass(frozen=True)
class Outcome:
    """The result of a command.

    Attributes:
        document: what --json prints.
        table: for people, anything that Rich prints; shown without --json.
        lines: for people, on stderr.
        said_by_table: lines that the table says, so only shown with --json.
        with_cost: whether the document gets CPU seconds and peak memory of this process, as "process".
        text: printed on stdout as it is, for scripts; there is no document then.
        exit_code: where nothing is wrong with the command itself.
        error: raised after all has been printed.
    """

    document: Mapping[str, Any]
    table: Any = None
    lines: tuple[str, ...] = ()
    said_by_table: tuple[str, ...] = ()
    with_cost: bool = False
    text: str | None = None
    exit_code: int = 0
    error: LowRankError | None = None
