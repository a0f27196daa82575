"""What the dense model hands to its head for every window: who is compared with it does not run it again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..core.progress import Progress
from ..distributed.workers import Parcel, Workers
from ..model.activations import Activations, Keep
from ..model.blocks import BlockSource


@torch.no_grad()
def last_hidden_states(
    blocks: BlockSource, windows: Tensor, keep: Keep, workers: Workers, progress: Progress
) -> Activations:
    """Hidden states after the final norm, (1, T, d) for each window; block by block, never the whole model.

    Args:
        blocks: of the dense model.
        windows: token ids (N, T); each process runs its share, and all get all.
        keep: where they lie between blocks, and after.
        workers: of the job.
        progress: receives blocks.
    """
    states = keep(blocks.embed([windows[i : i + 1] for i in workers.part(range(len(windows)))]))
    with progress.stage("hidden states of the dense model", blocks.block_count) as advance:
        for index in range(blocks.block_count):
            block = blocks.block(index)
            for number, x in enumerate(states):
                states[number] = blocks.run(block, x)
            del block
            advance(1)
    norm = blocks.head().norm

    def of_all() -> Iterator[Tensor]:
        for owner in range(workers.count):
            for number in range(len(Workers(owner, workers.count).part(range(len(windows))))):
                mine = Parcel({"": norm(states[number])}) if owner == workers.index else None
                yield workers.sent(mine, owner, blocks.device).tensors[""]

    return keep(of_all())
