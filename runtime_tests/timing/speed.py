"""Prefill and decode speed, candidate and dense interleaved in one run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from ..backends.protocol import Backend, Tokens


@dataclass(frozen=True)
class Rate:
    """Tokens per second over the repeats.

    Attributes:
        median, lowest, highest: of the rounds.
    """

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
        threads: CPU threads of the runtime.
    """

    prefill: Rate
    decode: Rate
    prompt_tokens: int
    decode_tokens: int
    repeats: int
    threads: int


def measure_speed(
    backends: Sequence[Backend],
    tokens: Tokens,
    *,
    prompts: Sequence[int],
    decode_tokens: int,
    threads: int,
    repeats: int = 3,
    warm_up: int = 1,
) -> list[list[Speed]]:
    """Time every backend in turn, round by round (A B A B ...), so that a drift of the machine meets all alike.

    All backends are fed the same tokens, so that all do the same work whatever they predict.

    Args:
        backends: open backends; their sequences are overwritten.
        tokens: (T,) token ids, at least the longest prompt + `decode_tokens`.
        prompts: lengths of the prompts.
        decode_tokens: tokens that follow a prompt one by one.
        threads: that the backends were opened with; noted.
        repeats: timed rounds per length.
        warm_up: untimed rounds before them.

    Returns:
        For every backend, in order, one `Speed` per prompt length.
    """
    found: list[list[Speed]] = [[] for _ in backends]
    for prompt in prompts:
        part = tokens[: prompt + decode_tokens]
        if min(prompt, decode_tokens, repeats) < 1 or len(part) < prompt + decode_tokens:
            raise ValueError(f"cannot time {prompt} + {decode_tokens} tokens {repeats} times with {len(tokens)} tokens")
        for speeds, (fast, slow) in zip(found, _rounds(backends, part, prompt, repeats, warm_up), strict=True):
            speeds.append(Speed(_rate(fast), _rate(slow), prompt, decode_tokens, repeats, threads))
    return found


def _rounds(
    backends: Sequence[Backend], tokens: Tokens, prompt_tokens: int, repeats: int, warm_up: int
) -> list[tuple[list[float], list[float]]]:
    """Tokens per second of prompt and of single tokens, for every backend and timed round."""
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in backends]
    for turn in range(warm_up + repeats):
        for backend, (prefill, decode) in zip(backends, found, strict=True):
            prefill_seconds, decode_seconds = _time_once(backend, tokens, prompt_tokens)
            if turn >= warm_up:
                prefill.append(prompt_tokens / prefill_seconds)
                decode.append((len(tokens) - prompt_tokens) / decode_seconds)
    return found


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
