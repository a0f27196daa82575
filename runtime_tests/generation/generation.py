"""Greedy and sampled generation through any backend."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...converter.core.errors import InputError
from ...converter.model.tokens import tokens_of
from ..backends.protocol import Backend, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPERATURE, TOP_P = 0.8, 0.95
UNLIKELY = 20.0  # nats below the likeliest token: a million such tokens together are rarer than 1 - TOP_P


@dataclass(frozen=True)
class Sample:
    """What a model wrote.

    Attributes:
        prompt, text: the prompt and the continuation.
        tokens: the continuation's token ids.
        seed: of sampled text; None for greedy.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    seed: int | None = None


def generate(
    backend: Backend, prompt: Tokens, *, max_tokens: int, end: Collection[int] = (), seed: int | None = None
) -> list[int]:
    """Continue `prompt` (T,).

    Greedy: of equal logits the lowest token id wins, in every runtime alike. Sampled: at `TEMPERATURE` from the
    smallest set of likeliest tokens that holds `TOP_P` of the probability; every step uses the next of the seed's
    uniform numbers whatever was drawn before, so that runtimes which agree write the same text.

    Args:
        backend: the model; its sequence is overwritten.
        prompt: token ids, at least one.
        max_tokens: longest continuation.
        end: token ids that end the text; the one met is not returned.
        seed: None for greedy.

    Raises:
        InputError: NaN logits (names the backend).
    """
    random = None if seed is None else np.random.default_rng(seed)
    backend.reset()
    continuation: list[int] = []
    step = prompt
    while len(continuation) < max_tokens:
        logits = backend.feed(step)
        if np.isnan(logits).any():
            raise InputError(f"{backend.name}: NaN logits after {len(continuation)} generated tokens")
        token = next_token(logits, random)
        if token in end:
            break
        continuation.append(token)
        step = np.array([token], dtype=np.int32)
    return continuation


def next_token(logits: NDArray[np.float32], random: np.random.Generator | None) -> int:
    """The likeliest token of (vocabulary,) logits, or with a generator the one that its next number draws."""
    return int(logits.argmax()) if random is None else draw(logits, float(random.random()))


def draw(logits: NDArray[np.float32], uniform: float) -> int:
    """The token at a place 0 <= `uniform` < 1 of the distribution, likeliest tokens first.

    Args:
        logits: (vocabulary,) without NaN.
    """
    scaled = logits.astype(np.float64) / TEMPERATURE
    scaled -= scaled.max()
    p = np.exp(scaled)
    likely = np.flatnonzero(scaled > -UNLIKELY)  # sorting all of a vocabulary would take longer than a small model
    order = likely[np.argsort(-scaled[likely], kind="stable")]
    total = np.cumsum(p[order]) / p.sum()
    kept = int(np.searchsorted(total, TOP_P)) + 1
    return int(order[np.searchsorted(total[:kept], uniform * total[min(kept, len(total)) - 1], side="right")])


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Token ids that end a text, as every export has them: see `tokens_of`."""
    return tokens_of(tokenizer).ends


def sample(
    backend: Backend,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_tokens: int,
    seed: int | None = None,
) -> Sample:
    """Continue a text until the tokenizer's end-of-text token or `max_tokens` tokens; greedily without a seed.

    Raises:
        InputError: the prompt has no tokens, or the model gives NaN logits.
    """
    ids = prompt_ids(tokenizer, prompt)
    tokens = generate(backend, ids, max_tokens=max_tokens, end=end_tokens(tokenizer), seed=seed)
    return as_sample(tokenizer, prompt, tokens, seed)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> Tokens:
    """Token ids (T,) of a prompt, without those that tokenizers add.

    Raises:
        InputError: it has none.
    """
    ids = np.asarray(tokenizer(prompt, add_special_tokens=False)["input_ids"], dtype=np.int32)
    if len(ids) == 0:
        raise InputError("the generation prompt is empty")
    return ids


def as_sample(tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: Sequence[int], seed: int | None) -> Sample:
    """A prompt and what continues it, as text."""
    text = tokenizer.decode(list(tokens))
    return Sample(prompt, text if isinstance(text, str) else "".join(text), tuple(tokens), seed)
