"""What embedding and head cost in every type: measured, since one forward of the model tells it exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...converter.core.progress import Progress
from ...converter.distributed.workers import ALONE
from ...converter.machine.memory import release_freed
from ...converter.model.activations import in_memory
from ...converter.model.blocks import BlockSource
from ...converter.model.head import Head
from ...converter.statistics.last_hidden import last_hidden_states

ROWS = 128  # tokens whose logits are in memory at once
Encode = Callable[[Tensor, str, Tensor | None], Tensor]
"""Weights (vocabulary, d), type, mean square of the inputs (d,) of the head alone -> as a file gives them back."""


@torch.no_grad()
def vocabulary_costs(
    blocks: BlockSource, windows: Tensor, types: Sequence[str], encode: Encode, tied: bool, progress: Progress
) -> dict[str, dict[str, float]]:
    """Mean KL divergence from the dense model, in nats per token, of embedding and head in every type.

    The residual streams of all types run through the blocks side by side: one block is in memory at a time.

    Args:
        blocks: the dense model.
        windows: token ids (N, T).
        types: storage types that the rows fit.
        encode: rounds a matrix as the export does.
        tied: whether the embedding serves as head too: one matrix then, and one cost.

    Returns:
        "embedding" and, where it is a matrix of its own, "head" -> type -> loss.
    """
    dense = torch.cat(list(last_hidden_states(blocks, windows, in_memory, ALONE, progress))).flatten(0, 1)
    importance = dense.float().square().mean(dim=0).cpu()
    embedding, streams = blocks.reader.tensor(blocks.family.embedding + ".weight").float(), []
    for type in types:
        rounded = encode(embedding, type, importance if tied else None)
        stream = torch.nn.functional.embedding(windows.long(), rounded).to(dense)
        streams.append(blocks.entered(stream))
    with progress.stage("embedding in every type", blocks.block_count) as advance:
        for index in range(blocks.block_count):
            block = blocks.block(index)
            streams = [blocks.run(block, stream) for stream in streams]
            del block
            release_freed()
            advance(1)
    head = blocks.head()
    others = [head.norm(stream).flatten(0, 1) for stream in streams]
    costs: dict[str, dict[str, float]] = {"embedding": {}} if tied else {"embedding": {}, "head": {}}
    for type, hidden in zip(types, others, strict=True):
        other = replace(head, weight=encode(head.weight.float().cpu(), type, importance).to(head.weight))
        costs["embedding"][type] = _divergence(dense, head, hidden, other if tied else head)
        if not tied:
            costs["head"][type] = _divergence(dense, head, dense, other)
    return costs


def _divergence(x: Tensor, head: Head, y: Tensor, other: Head) -> float:
    """Mean KL(p || q) per token of the logits of x by one head and of y by another, float64 sums."""
    total = 0.0
    for start in range(0, len(x), ROWS):
        p, q = (by.logits(z[start : start + ROWS]).log_softmax(-1) for by, z in ((head, x), (other, y)))
        total += float((p.exp() * (p - q)).sum(dtype=torch.float64))
    return total / len(x)
