"""Errors a user can act on. Each carries the documented exit code; anything else is a bug (exit code 1)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class LowRankError(Exception):
    """One clear line: what is wrong, where, what to do."""

    exit_code = 1


class UsageError(LowRankError):
    """The command line or recipe asks for something that does not exist or contradicts itself."""

    exit_code = 2


class InputError(LowRankError):
    """A model, checkpoint, artifact or text that cannot be used."""

    exit_code = 3


class GateError(LowRankError):
    """A gate of the validation failed."""

    exit_code = 4


class ResourceError(LowRankError):
    """Out of memory or disk, or a tool the machine lacks."""

    exit_code = 5


class WorkerLostError(ResourceError):
    """Another process of this job (`torchrun`) is gone."""


class AlreadyReportedError(LowRankError):
    """Another process of this job has said what went wrong; this one ends without a word."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


@contextmanager
def naming(option: str) -> Iterator[None]:
    """What is wrong with an input that an option or a file names begins with that name."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{option} {error}") from None


def way_out(dtype: str) -> str:
    """What helps where numbers go beyond a dtype's range."""
    return "check the model" if dtype == "float32" else "use --dtype float32, or check the model"
