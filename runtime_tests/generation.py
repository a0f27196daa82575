"""Greedy generation through any backend."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..converter.errors import InputError
from .backends.protocol import Backend, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sample:
    """What a model wrote: the prompt, the continuation, and the continuation's token ids."""

    prompt: str
    text: str
    tokens: tuple[int, ...]


def generate(backend: Backend, prompt: Tokens, *, max_tokens: int, end: Collection[int] = ()) -> list[int]:
    """Continue `prompt` (T,) greedily; of equal logits the lowest token id wins, in every runtime alike.

    Args:
        backend: the model; its sequence is overwritten.
        prompt: token ids, at least one.
        max_tokens: longest continuation.
        end: token ids that end the text; the one met is not returned.

    Raises:
        InputError: NaN logits (names the backend).
    """
    backend.reset()
    continuation: list[int] = []
    step = prompt
    while len(continuation) < max_tokens:
        logits = backend.feed(step)
        if np.isnan(logits).any():
            raise InputError(f"{backend.name}: NaN logits after {len(continuation)} generated tokens")
        token = int(logits.argmax())
        if token in end:
            break
        continuation.append(token)
        step = np.array([token], dtype=np.int32)
    return continuation


def sample(backend: Backend, tokenizer: PreTrainedTokenizerBase, prompt: str, *, max_tokens: int) -> Sample:
    """Continue a text greedily until the tokenizer's end-of-text token or `max_tokens` tokens.

    Raises:
        InputError: the prompt has no tokens, or the model gives NaN logits.
    """
    ids = np.asarray(tokenizer(prompt, add_special_tokens=False)["input_ids"], dtype=np.int32)
    if len(ids) == 0:
        raise InputError("the generation prompt is empty")
    end = () if tokenizer.eos_token_id is None else (int(tokenizer.eos_token_id),)
    tokens = generate(backend, ids, max_tokens=max_tokens, end=end)
    text = tokenizer.decode(tokens)
    return Sample(prompt, text if isinstance(text, str) else "".join(text), tuple(tokens))
