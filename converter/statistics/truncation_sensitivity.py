"""What truncating one linear alone does to the model's loss: ASVD's sensitivity, measured block by block."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checkpoint.layouts import Layout, rank_for
from ..factors.factorisation import factor
from ..factors.whitening import activation_scale
from ..machine.workers import ALONE, Workers
from ..model.blocks import BlockSource
from ..progress import Progress
from .gathering import MEAN_ABS
from .sensitivity import finite_activations
from .store import Statistics

HEAD_ROWS = 256  # tokens whose logits are in memory at once


@torch.no_grad()
def truncation_losses(
    blocks: BlockSource,
    windows: Tensor,
    retentions: Sequence[float],
    layout: Layout,
    store: Statistics,
    progress: Progress,
    workers: Workers = ALONE,
) -> dict[str, list[float]]:
    """Full linear name -> mean token loss of the model with this linear alone truncated, per retention.

    The truncation is ASVD's, in the scale of mean absolute activations. Blocks before the changed one are run once,
    those after it once per variant, all variants of a block together, so that weights are read once per block and
    changed block. Finished blocks are kept in the statistics, and a job that was stopped goes on after them. Workers
    share the variants of a block.

    Memory: one block, and a residual stream per linear of a block, retention and window.

    Args:
        blocks: the dense model.
        windows: token ids (N, T).
        retentions: of the linear, below 1.
        layout: says which rank a retention is.
        store: read for kind "dense"; filled with kind "sensitivity".
        progress: told about every block that the variants of a block run through.
        workers: of the job.
    """
    count = blocks.block_count
    (stream,) = blocks.embed([windows])
    result: dict[str, list[float]] = {}
    with progress.stage("loss of truncating each linear alone", count * (count + 1) // 2) as advance:
        for index in range(count):
            block = blocks.block(index)
            ranks = _ranks(blocks, block, retentions, layout)
            stored = _stored(store, index, blocks, ranks)
            if stored is None:
                mine = workers.part([(name, rank) for name, row in ranks.items() for rank in row])
                streams = _variants(blocks, block, index, stream, mine, store)
                advance(1)
                for later in range(index + 1, count):
                    after = blocks.block(later)
                    for key, x in streams.items():
                        streams[key] = blocks.run(after, x)
                    del after
                    advance(1)
                measured = workers.gathered({key: _mean_loss(blocks, x, windows) for key, x in streams.items()})
                losses = dict(ChainMap(*measured))
                found = {name: torch.tensor([row, [losses[name, rank] for rank in row]]) for name, row in ranks.items()}
                store.save("sensitivity", index, found)
                stored = {name: rows[1].tolist() for name, rows in found.items()}  # float32, as it is read back
            else:
                advance(count - index)
            result |= {blocks.family.linear_name(index, name): values for name, values in stored.items()}
            stream = blocks.run(block, stream)
            del block
    return result


def _ranks(blocks: BlockSource, block: nn.Module, retentions: Sequence[float], layout: Layout) -> dict[str, list[int]]:
    """Linear -> its rank at each retention."""
    result = {}
    for name in blocks.family.linears:
        m, n = block.get_parameter(name + ".weight").shape
        result[name] = [max(1, int(rank_for(layout, m, n, retention))) for retention in retentions]
    return result


def _stored(
    store: Statistics, index: int, blocks: BlockSource, ranks: dict[str, list[int]]
) -> dict[str, list[float]] | None:
    """Linear -> losses of an earlier run, where it measured the same ranks."""
    if not store.has("sensitivity", index + 1):
        return None
    found = store.read("sensitivity", index, blocks.device)
    if any(values.shape != (2, len(ranks.get(name, ()))) for name, values in found.items()):
        return None
    if {name: values[0].tolist() for name, values in found.items()} != ranks:
        return None
    return {name: values[1].tolist() for name, values in found.items()}


def _variants(
    blocks: BlockSource,
    block: nn.Module,
    index: int,
    x: Tensor,
    wanted: Sequence[tuple[str, int]],
    store: Statistics,
) -> dict[tuple[str, int], Tensor]:
    """(linear, rank) -> output of the block with that linear truncated, for those wanted."""
    found = store.read("dense", index, blocks.device)
    outputs = {}
    for group in blocks.family.groups:
        with finite_activations(blocks, index):
            whitener = activation_scale(found[MEAN_ABS + group.name])
        for name in group.linears:
            linear, ranks = block.get_submodule(name), [rank for linear, rank in wanted if linear == name]
            assert isinstance(linear, nn.Linear)
            if not ranks:
                continue
            dense = linear.weight
            factors, _ = factor(dense, max(ranks), whitener)
            for rank in ranks:  # U is orthonormal: its leading columns are the smaller truncation
                truncated = (factors.u[:, :rank] @ factors.v[:rank]).to(dense.dtype)
                linear.weight = nn.Parameter(truncated, requires_grad=False)
                outputs[name, rank] = blocks.run(block, x)
            linear.weight = dense
    return outputs


def _mean_loss(blocks: BlockSource, x: Tensor, windows: Tensor) -> float:
    """Mean cross-entropy of the next tokens, given the last block's output (N, T, d); infinite where it overflowed."""
    norm, weight = blocks.head()
    normed = norm(x)[:, :-1].flatten(0, 1)
    labels = windows[:, 1:].flatten().to(x.device).long()
    total = 0.0
    for start in range(0, len(labels), HEAD_ROWS):
        rows = slice(start, start + HEAD_ROWS)
        logits = (normed[rows] @ weight.T).float()
        total += float(nn.functional.cross_entropy(logits, labels[rows], reduction="sum"))
    return total / len(labels) if total == total else float("inf")
