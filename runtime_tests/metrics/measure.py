"""One open backend over all windows: perplexity, and divergence from recorded references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from ...converter.checkpoint.reader import CheckpointReader
from ...converter.core.errors import InputError, ResourceError
from ...converter.core.progress import Progress
from ...converter.machine.device_memory import free_memory
from ...converter.machine.memory import resident_memory
from ...converter.planning.memory_plan import gigabytes
from ...converter.storage.byte_size import MemoryLimits
from ..backends.protocol import Backend
from .parity import Divergence, Parity, divergence, parity
from .perplexity import Perplexity, perplexity, token_losses
from .reference_logits import ReferenceLogits, checked_logits
from .windows import Windows

FLOAT = 4
"""Bytes per parameter of the reference."""


def check_measurable(dense: CheckpointReader, limits: MemoryLimits, device: str = "cpu") -> None:
    """Refuse, before any work, to measure what limits on memory let be compressed alone.

    Args:
        dense: the model that everything is compared with; float32 and whole in memory.
        limits: of this process; of a GPU by default what is free there.
        device: that it is measured on.

    Raises:
        ResourceError: it is larger.
    """
    tensors = FLOAT * sum(prod(dense.shape(name)) for name in dense.names)
    needed = resident_memory() + tensors
    otherwise = "or use compress and export, which read it block by block"
    if limits.process is not None and needed > limits.process:
        raise ResourceError(
            f"--max-memory {gigabytes(limits.process)}: to measure takes the dense model in memory, "
            f"{gigabytes(needed)}; allow that much, {otherwise}"
        )
    if not device.startswith("cuda"):
        return
    import torch

    free = free_memory(torch.device(device))
    if tensors > min(free, limits.device or free):
        raise ResourceError(
            f"{device}: to measure takes the dense model there, {gigabytes(tensors)}, and {gigabytes(free)} are free"
            f"{'' if limits.device is None else f', --max-device-memory is {gigabytes(limits.device)}'}; use "
            f"--device cpu, {otherwise}"
        )


@dataclass(frozen=True)
class Measured:
    """Perplexity over all windows, and the parity with each reference in the order they were given."""

    perplexity: Perplexity
    parities: tuple[Parity, ...]


def measure(
    backend: Backend,
    windows: Windows,
    references: Sequence[ReferenceLogits],
    progress: Progress,
    *,
    label: str,
) -> Measured:
    """Run every window once and compare each with all references. Memory: the logits of one window.

    Args:
        backend: the candidate.
        windows: the very windows the references were recorded on.
        references: what to compare with.
        progress: receives one stage of N steps.
        label: name of the stage.

    Raises:
        InputError: logits that are not finite, or of another vocabulary than a reference's (names the backend).
    """
    losses = []
    divergences: list[list[Divergence]] = [[] for _ in references]
    with progress.stage(label, len(windows)) as advance:
        for index, tokens in enumerate(windows.tokens):
            logits = checked_logits(backend, tokens, index)[windows.scored(index)]
            targets = windows.targets(index)
            losses.append(token_losses(logits, targets))
            for reference, found in zip(references, divergences, strict=True):
                if logits.shape[1] != reference.vocabulary:
                    raise InputError(
                        f"{backend.name}: vocabulary of {logits.shape[1]} tokens, the reference has "
                        f"{reference.vocabulary}; the artifact was not made from this reference"
                    )
                found.append(divergence(reference.window(index), logits, targets))
            advance(1)
    parities = tuple(parity(found, windows.first) for found in divergences)
    return Measured(perplexity(np.concatenate(losses)), parities)


def compare(reference: ReferenceLogits, candidate: ReferenceLogits, progress: Progress, *, label: str) -> Parity:
    """Parity of two recorded models over the same windows, without running either again.

    Raises:
        InputError: their vocabularies differ.
    """
    found = []
    with progress.stage(label, len(reference)) as advance:
        for index, (ours, theirs) in enumerate(zip(reference, candidate, strict=True)):
            found.append(divergence(ours, theirs, reference.windows.targets(index)))
            advance(1)
    return parity(found, reference.windows.first)
