"""One command of this package in a process of its own: its JSON document, or its one-line error as an exception."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..converter.core.errors import InputError, LowRankError, ResourceError, UsageError
from ..converter.core.signals import signal_words

INTERRUPTED = 130
PATIENCE = 60.0  # seconds that a child has to clean up in after it is asked to end
ERRORS: dict[int, type[LowRankError]] = {error.exit_code: error for error in (UsageError, InputError, ResourceError)}


@dataclass(frozen=True)
class Cost:
    """What a process used, from its start on.

    Attributes:
        cpu_seconds: user and system, over all its threads.
        wall_seconds: from before its start until after its end.
        peak_bytes: peak resident memory.
    """

    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int


def run_child(arguments: Sequence[str], log: Path) -> tuple[dict[str, Any], Cost]:
    """Run `lowrank-export ARGUMENTS --json`, which reports `process`, and wait for it.

    The child has a process group of its own: an interrupt on the terminal reaches this process alone, which passes it
    on once, so that the child cleans up undisturbed.

    Args:
        arguments: command and options.
        log: takes the child's stderr; replaced.

    Returns:
        The document that the child printed, and what it used.

    Raises:
        LowRankError: the child's error, with its exit code.
        KeyboardInterrupt: this process or the child was interrupted; the child has ended.
    """
    command = [sys.executable, "-P", "-m", "lowrank_export", *arguments, "--json"]
    started = time.perf_counter()
    with log.open("w", encoding="utf-8") as errors:
        child = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, process_group=0
        )
        try:
            printed, _ = child.communicate()
        except BaseException:
            _end(child)
            raise
    wall = time.perf_counter() - started
    if child.returncode != 0:
        raise _error(child.returncode, log.read_text(encoding="utf-8", errors="replace"))
    document: dict[str, Any] = json.loads(printed)
    used = document["process"]
    return document, Cost(float(used["cpu_seconds"]), wall, int(used["peak_bytes"]))


def _end(child: subprocess.Popen[str]) -> None:
    """Let the child clean up; kill it if that takes too long, or at a second interrupt."""
    child.terminate()
    try:
        child.communicate(timeout=PATIENCE)
    except BaseException:
        child.kill()
        child.communicate()


def _error(code: int, stderr: str) -> BaseException:
    """A child's exit code and stderr as the exception that ends this process in the same way."""
    if code == INTERRUPTED:
        return KeyboardInterrupt()
    lines = [line for line in stderr.splitlines() if line.strip()] or [""]
    message = lines[-1].removeprefix("error: ")
    if code == -signal.SIGKILL:
        return ResourceError("the compression was killed, most likely for want of memory; use fewer --windows")
    if code < 0:
        return RuntimeError(f"the compression was ended by a signal: {signal_words(-code)} (it last said: {message})")
    return ERRORS.get(code, RuntimeError)(message)
