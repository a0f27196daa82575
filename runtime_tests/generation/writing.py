"""What a model writes: a few prompts to be read, and pieces of the evaluation text to measure whether it repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...converter.core.progress import Advance
from ..backends.protocol import Backend
from ..metrics.degeneration import Degeneration, degeneration
from .continuations import Pieces, continue_pieces
from .generation import Sample, as_sample, end_tokens, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Writing:
    """Continuations of every prompt, and figures.

    Attributes:
        greedy, sampled: one per prompt.
        greedy_degeneration: over the greedy ones. Small models repeat themselves greedily even when they are sound.
        sampled_degeneration: over sampled continuations of pieces of the evaluation text, which gates read; a few
            prompts are too few: one that ends in a loop decides the mean.
    """

    greedy: tuple[Sample, ...]
    sampled: tuple[Sample, ...]
    greedy_degeneration: Degeneration
    sampled_degeneration: Degeneration


def write(
    backend: Backend,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    pieces: Pieces,
    *,
    max_tokens: int,
    seed: int,
    advance: Advance = lambda tokens: None,
) -> Writing:
    """Let a model continue every prompt twice and every piece once; number i is sampled with seed + i.

    Args:
        advance: told `max_tokens` for every continuation, of pieces as they come.

    Raises:
        InputError: a prompt without tokens, or NaN logits.
    """
    greedy: list[Sample] = []
    sampled: list[Sample] = []
    ends = end_tokens(tokenizer)
    for index, prompt in enumerate(prompts):
        seeds = (None, seed + index)
        twice = np.tile(prompt_ids(tokenizer, prompt), (2, 1))
        both = continue_pieces(backend, twice, seeds=seeds, max_tokens=max_tokens, end=ends, advance=advance)
        for texts, tokens, number in zip((greedy, sampled), both, seeds, strict=True):
            texts.append(as_sample(tokenizer, prompt, tokens, number))
    numbers = range(seed, seed + len(pieces))
    continued = continue_pieces(backend, pieces, seeds=numbers, max_tokens=max_tokens, end=ends, advance=advance)
    written = degeneration([text.tokens for text in greedy]), degeneration(continued)
    return Writing(tuple(greedy), tuple(sampled), *written)
