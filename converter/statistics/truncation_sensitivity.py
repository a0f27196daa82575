"""What truncating linears does to the model's loss, each linear or each block alone, measured block by block."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..allocation.stacks import members_of
from ..checkpoint.layouts import Layout, rank_for
from ..core.progress import Progress
from ..distributed.workers import ALONE, Workers
from ..factors.factorization import factor
from ..factors.whitening import Whitener, activation_scale, whiten
from ..model.blocks import BlockSource
from .gathering import MEAN_ABS, SIGMA
from .sensitivity import finite_activations
from .store import Statistics

HEAD_ROWS = 256  # tokens whose logits are in memory at once
Alone = Literal["sensitivity", "block-error"]
"""What is truncated while all else stays dense, by the kind of statistics that it makes.

"sensitivity": one linear, in the scale of mean absolute activations (ASVD). "block-error": all linears of a block, each
in the metric of its Sigma (LC-SVD).
"""
Variant = tuple[tuple[str, ...], int]  # linears that are truncated, and the number of their retention


@dataclass(frozen=True)
class Truncated:
    """What linears are truncated to.

    Attributes:
        retentions: of a linear, below 1.
        layout: says which rank a retention is.
        keep_dense: full names of linears that never are.
    """

    retentions: Sequence[float]
    layout: Layout
    keep_dense: Collection[str] = ()


@torch.no_grad()
def truncation_losses(
    blocks: BlockSource,
    windows: Tensor,
    truncated: Truncated,
    store: Statistics,
    progress: Progress,
    workers: Workers = ALONE,
    *,
    alone: Alone = "sensitivity",
) -> tuple[dict[str, list[float]], float]:
    """Full linear name -> mean token loss of the model with it truncated, per retention; and that of the dense model.

    Linears that are truncated together have one loss. Blocks before the changed one are run once, those after it once
    per variant, all variants of a block together, so that weights are read once per block and changed block. Finished
    blocks are kept in the statistics, and a job that was stopped goes on after them. Workers share the variants of a
    block.

    Memory: one block, and a residual stream per variant of a block and window; for "block-error" also the factors of
    its linears and a second block.

    Args:
        blocks: the dense model.
        windows: token ids (N, T).
        truncated: which linears, and to what.
        store: read for kind "dense"; filled with kind `alone`.
        progress: receives every block that the variants of a block run through.
        workers: of the job.
        alone: what is truncated at a time.
    """
    count = blocks.block_count
    (stream,) = blocks.embed([windows])
    result: dict[str, list[float]] = {}
    what = "linear" if alone == "sensitivity" else "block"
    with progress.stage(f"loss of truncating each {what} alone", count * (count + 1) // 2) as advance:
        for index in range(count):
            block = blocks.block(index)
            ranks = _ranks(blocks, block, index, truncated)
            stored = _stored(store, alone, index, blocks, ranks)
            if stored is None:
                together = [tuple(ranks)] if alone == "block-error" else _stacks(ranks, blocks)
                mine = workers.part([(names, k) for names in together for k in range(len(truncated.retentions))])
                streams = _variants(blocks, block, index, stream, mine, ranks, store, alone)
                advance(1)
                for later in range(index + 1, count):
                    after = blocks.block(later)
                    for key, x in streams.items():
                        streams[key] = blocks.run(after, x)
                    del after
                    advance(1)
                measured = workers.gathered({key: _mean_loss(blocks, x, windows) for key, x in streams.items()})
                streams.clear()  # before those of the next block are made
                losses = dict(ChainMap(*measured))
                found = {
                    name: torch.tensor([ranks[name], [losses[names, k] for k in range(len(truncated.retentions))]])
                    for names in together
                    for name in names
                }
                store.save(alone, index, found)
                stored = {name: rows[1].tolist() for name, rows in found.items()}  # float32, as it is read back
            else:
                advance(count - index)
            result |= {blocks.family.linear_name(index, name): values for name, values in stored.items()}
            stream = blocks.run(block, stream)
            del block
    return result, _mean_loss(blocks, stream, windows)


def _stacks(names: Collection[str], blocks: BlockSource) -> list[tuple[str, ...]]:
    """Linears of a block that have one rank, together."""
    return [tuple(members) for members in members_of(names, blocks.family.stack).values()]


def _ranks(blocks: BlockSource, block: nn.Module, index: int, truncated: Truncated) -> dict[str, list[int]]:
    """Linear that is truncated -> its rank at each retention."""
    result = {}
    for name in blocks.family.linears:
        if blocks.family.linear_name(index, name) not in truncated.keep_dense:
            m, n = block.get_parameter(name + ".weight").shape
            result[name] = [
                max(1, int(rank_for(truncated.layout, m, n, retention))) for retention in truncated.retentions
            ]
    return result


def _stored(
    store: Statistics, alone: Alone, index: int, blocks: BlockSource, ranks: dict[str, list[int]]
) -> dict[str, list[float]] | None:
    """Linear -> losses of an earlier run, where it measured the same ranks."""
    if not store.has(alone, index + 1):
        return None
    found = store.read(alone, index, blocks.device)
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
    wanted: Sequence[Variant],
    ranks: dict[str, list[int]],
    store: Statistics,
    alone: Alone,
) -> dict[Variant, Tensor]:
    """Variant -> output of the block with its linears truncated, for those wanted."""
    outputs = {}
    for names in dict.fromkeys(names for names, _ in wanted):
        chosen = [k for others, k in wanted if others == names]
        factors = {}
        for group in blocks.family.groups:
            inside = [name for name in group.linears if name in names]
            if inside:
                whitener = _whitener(blocks, index, group.name, store, alone)
                for name in inside:
                    rank = max(ranks[name][k] for k in chosen)
                    factors[name] = factor(block.get_parameter(name + ".weight"), rank, whitener)[0]
                del whitener
        linears = {name: block.get_submodule(name) for name in names}
        dense = {name: linear.weight for name, linear in linears.items()}
        for k in chosen:  # U is orthonormal: its leading columns are the smaller truncation
            for name, linear in linears.items():
                rank = ranks[name][k]
                truncated = factors[name].u[:, :rank] @ factors[name].v[:rank]
                linear.weight = nn.Parameter(truncated.to(dense[name].dtype), requires_grad=False)  # type: ignore[arg-type]
            outputs[names, k] = blocks.run(block, x)
        for name, linear in linears.items():
            linear.weight = dense[name]
    return outputs


def _whitener(blocks: BlockSource, index: int, group: str, store: Statistics, alone: Alone) -> Whitener:
    """What the truncation of an input group's linears sees."""
    prefix, metric = (MEAN_ABS, activation_scale) if alone == "sensitivity" else (SIGMA, whiten)
    moment = store.read_one("dense", index, blocks.device, prefix + group)
    with finite_activations(blocks, index):
        return metric(moment)


def _mean_loss(blocks: BlockSource, x: Tensor, windows: Tensor) -> float:
    """Mean cross-entropy of the next tokens, given the last block's output (N, T, d); infinite where it overflowed."""
    head = blocks.head()
    normed = head.norm(x)[:, :-1].flatten(0, 1)
    labels = windows[:, 1:].flatten().to(x.device).long()
    total = 0.0
    for start in range(0, len(labels), HEAD_ROWS):
        rows = slice(start, start + HEAD_ROWS)
        total += float(nn.functional.cross_entropy(head.logits(normed[rows]), labels[rows], reduction="sum"))
    return total / len(labels) if total == total else float("inf")
