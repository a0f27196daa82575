"""The signal that ended a process, in plain words."""

from __future__ import annotations

import signal


def signal_words(number: int) -> str:
    """A signal's number as "illegal instruction (SIGILL)"."""
    try:
        name = signal.Signals(number).name
    except ValueError:  # one of the real-time signals between the named ones
        name = f"signal {number}"
    meaning = (signal.strsignal(number) or "ended by a signal").partition(":")[0]
    return f"{meaning.lower()} ({name})"
