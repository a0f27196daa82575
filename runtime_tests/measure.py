"""One open backend over all windows: perplexity, and divergence from recorded references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..converter.errors import InputError
from ..converter.progress import Progress
from .backends.protocol import Backend
from .parity import Divergence, Parity, divergence, parity
from .perplexity import Perplexity, perplexity, token_losses
from .reference_logits import ReferenceLogits, checked_logits


@dataclass(frozen=True)
class Measured:
    """Perplexity over all windows, and the parity with each reference in the order they were given."""

    perplexity: Perplexity
    parities: tuple[Parity, ...]


def measure(
    backend: Backend,
    windows: NDArray[np.int32],
    references: Sequence[ReferenceLogits],
    progress: Progress,
    *,
    label: str,
) -> Measured:
    """Run every window once and compare each with all references. Memory: the logits of one window.

    Args:
        backend: the candidate.
        windows: (N, T), the very windows the references were recorded on.
        references: what to compare with.
        progress: receives one stage of N steps.
        label: name of the stage.

    Raises:
        InputError: logits that are not finite, or of another vocabulary than a reference's (names the backend).
    """
    losses = np.empty((windows.shape[0], windows.shape[1] - 1))
    divergences: list[list[Divergence]] = [[] for _ in references]
    with progress.stage(label, len(windows)) as advance:
        for index, tokens in enumerate(windows):
            logits = checked_logits(backend, tokens, index)
            losses[index] = token_losses(logits, tokens)
            for reference, found in zip(references, divergences, strict=True):
                if logits.shape[1] != reference.vocabulary:
                    raise InputError(
                        f"{backend.name}: vocabulary of {logits.shape[1]} tokens, the reference has "
                        f"{reference.vocabulary}; the artifact was not made from this reference"
                    )
                found.append(divergence(reference.window(index), logits[:-1]))
            advance(1)
    return Measured(perplexity(losses), tuple(parity(found) for found in divergences))


def compare(reference: ReferenceLogits, candidate: ReferenceLogits, progress: Progress, *, label: str) -> Parity:
    """Parity of two recorded models over the same windows, without running either again.

    Raises:
        InputError: their vocabularies differ.
    """
    found = []
    with progress.stage(label, len(reference)) as advance:
        for ours, theirs in zip(reference, candidate, strict=True):
            found.append(divergence(ours, theirs))
            advance(1)
    return parity(found)
