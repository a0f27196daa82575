"""Pieces of the evaluation text, each continued by a model: enough of them to say how much it repeats itself."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from ...converter.core.errors import InputError
from ...converter.core.progress import Advance
from ..backends.protocol import Backend, Together
from ..metrics.windows import Windows
from .generation import generate, next_token

Pieces = NDArray[np.int32]  # (N, P) token ids


def pieces(windows: Windows, count: int, length: int) -> Pieces:
    """Cut `count` pieces of text, evenly spaced; no random number takes part.

    Args:
        windows: N windows of T tokens.
        count: pieces wanted, at least 1; several of one window where there are fewer windows.
        length: tokens of a piece; less where a window has to give several.

    Returns:
        (count, P) with P <= length; fewer pieces from windows that have fewer tokens.
    """
    each = min(-(-count // len(windows)), windows.length)
    apart = windows.length // each
    cut = [windows.tokens[:, start * apart :][:, : min(length, apart)] for start in range(each)]
    found = np.concatenate(cut)
    return np.ascontiguousarray(found[np.arange(min(count, len(found))) * len(found) // min(count, len(found))])


def continue_pieces(
    backend: Backend,
    prompts: Pieces,
    *,
    seeds: Sequence[int | None],
    max_tokens: int,
    end: Collection[int],
    advance: Advance = lambda tokens: None,
) -> list[list[int]]:
    """Continue every piece; as many at once as the runtime has room for.

    Args:
        backend: the model; its sequences are overwritten.
        prompts: (N, P).
        seeds: N, as `generate` takes them; None for greedy.
        max_tokens, end: as `generate`.
        advance: told about tokens, `max_tokens` of every piece in all.

    Returns:
        N continuations, those of `generate` but for what a runtime rounds otherwise when it runs several at once.

    Raises:
        InputError: NaN logits (names the backend).
    """
    found: list[list[int]] = []
    if isinstance(backend, Together):
        together = backend.at_once(prompts.shape[1] + max_tokens)
        for start in range(0, len(prompts), together):
            some = slice(start, start + together)
            found += _together(backend, prompts[some], seeds[some], max_tokens=max_tokens, end=end, advance=advance)
        return found
    for prompt, seed in zip(prompts, seeds, strict=True):
        found.append(generate(backend, prompt, max_tokens=max_tokens, end=end, seed=seed))
        advance(max_tokens)
    return found


def _together(
    backend: Backend,
    prompts: Pieces,
    seeds: Sequence[int | None],
    *,
    max_tokens: int,
    end: Collection[int],
    advance: Advance,
) -> list[list[int]]:
    assert isinstance(backend, Together)
    random = [None if seed is None else np.random.default_rng(seed) for seed in seeds]
    found: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    step = prompts
    backend.reset()
    for count in range(max_tokens):
        logits = backend.feed_all(step)
        if np.isnan(logits).any():
            raise InputError(f"{backend.name}: NaN logits after {count} generated tokens")
        drawn = [next_token(row, source) for row, source in zip(logits, random, strict=True)]
        going = [index for index in going if drawn[index] not in end]
        for index in going:
            found[index].append(drawn[index])
        advance(len(prompts))
        if not going:
            advance((max_tokens - count - 1) * len(prompts))
            break
        step = np.array(drawn, dtype=np.int32)[:, None]
    return found
