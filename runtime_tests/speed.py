"""Prefill and decode speed, candidate and dense interleaved in one run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from .backends.protocol import Backend, Tokens


@dataclass(frozen=True)
class Rate:
    """Tokens per second over the repeats: the median, the slowest and the fastest."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Speed:
    """Speed of one model in one runtime.

    Attributes:
        prefill: tokens per second of feeding `prompt_tokens` at once into an empty state.
        decode: tokens per second of feeding `decode_tokens` one by one after the prompt.
        prompt_tokens, decode_tokens: lengths used.
        repeats: timed rounds; one untimed round went before.
    """

    prefill: Rate
    decode: Rate
    prompt_tokens: int
    decode_tokens: int
    repeats: int


def measure_speed(
    backends: Sequence[Backend], tokens: Tokens, *, prompt_tokens: int, repeats: int = 3, warm_up: int = 1
) -> list[Speed]:
    """Time every backend in turn, round by round (A B A B ...), so that a drift of the machine meets all alike.

    All backends are fed the same tokens, so that all do the same work whatever they predict.

    Args:
        backends: open backends; their sequences are overwritten.
        tokens: (T,) token ids; the first `prompt_tokens` are the prompt, the rest are decoded one by one.
        prompt_tokens: length of the prompt, 1 <= prompt_tokens < T.
        repeats: timed rounds.
        warm_up: untimed rounds before them.

    Returns:
        One `Speed` per backend, in order.
    """
    if not 0 < prompt_tokens < len(tokens) or repeats < 1:
        raise ValueError(f"need 0 < prompt_tokens ({prompt_tokens}) < {len(tokens)} tokens and repeats >= 1")
    decode_tokens = len(tokens) - prompt_tokens
    prefill: list[list[float]] = [[] for _ in backends]
    decode: list[list[float]] = [[] for _ in backends]
    for turn in range(warm_up + repeats):
        for index, backend in enumerate(backends):
            prefill_seconds, decode_seconds = _time_once(backend, tokens, prompt_tokens)
            if turn >= warm_up:
                prefill[index].append(prompt_tokens / prefill_seconds)
                decode[index].append(decode_tokens / decode_seconds)
    return [
        Speed(_rate(fast), _rate(slow), prompt_tokens, decode_tokens, repeats)
        for fast, slow in zip(prefill, decode, strict=True)
    ]


def _time_once(backend: Backend, tokens: Tokens, prompt_tokens: int) -> tuple[float, float]:
    """Seconds of the prompt and of all single tokens after it."""
    backend.reset()
    begin = perf_counter()
    backend.feed(tokens[:prompt_tokens])
    middle = perf_counter()
    for position in range(prompt_tokens, len(tokens)):
        backend.feed(tokens[position : position + 1])
    return max(middle - begin, 1e-9), max(perf_counter() - middle, 1e-9)


def _rate(samples: Sequence[float]) -> Rate:
    return Rate(statistics.median(samples), min(samples), max(samples))
