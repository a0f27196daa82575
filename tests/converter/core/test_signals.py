"""Signals in plain words."""

from __future__ import annotations

import signal

import pytest

from lowrank_export.converter.core.signals import signal_words


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGILL, "illegal instruction (SIGILL)"),
        (signal.SIGSEGV, "segmentation fault (SIGSEGV)"),
        (signal.SIGABRT, "aborted (SIGABRT)"),
        (signal.SIGBUS, "bus error (SIGBUS)"),
    ],
)
def test_named_signals(number: int, words: str) -> None:
    assert signal_words(number) == words


def test_every_signal_has_words() -> None:
    """The real-time ones between the named ones too."""
    for number in signal.valid_signals():
        words = signal_words(number)
        assert (words.endswith(")") and "(SIG" in words) or f"(signal {int(number)})" in words
        assert words.partition(" (")[0]
