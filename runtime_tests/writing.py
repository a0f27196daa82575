"""What a model writes to a few prompts, greedily and sampled, and whether it repeats itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .backends.protocol import Backend
from .degeneration import Degeneration, degeneration
from .generation import Sample, sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Writing:
    """Continuations of every prompt.

    Attributes:
        greedy, sampled: one per prompt.
        greedy_degeneration, sampled_degeneration: over all of each kind. Small models repeat themselves greedily even
            when they are sound: the sampled figures tell more.
    """

    greedy: tuple[Sample, ...]
    sampled: tuple[Sample, ...]
    greedy_degeneration: Degeneration
    sampled_degeneration: Degeneration


def write(
    backend: Backend, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, max_tokens: int, seed: int
) -> Writing:
    """Let a model continue every prompt twice; prompt i is sampled with seed + i.

    Raises:
        InputError: a prompt without tokens, or NaN logits.
    """
    greedy = tuple(sample(backend, tokenizer, prompt, max_tokens=max_tokens) for prompt in prompts)
    sampled = tuple(
        sample(backend, tokenizer, prompt, max_tokens=max_tokens, seed=seed + index)
        for index, prompt in enumerate(prompts)
    )
    return Writing(
        greedy,
        sampled,
        degeneration([text.tokens for text in greedy]),
        degeneration([text.tokens for text in sampled]),
    )
