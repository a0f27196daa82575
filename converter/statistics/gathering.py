"""Passes over the dense model that fill the statistics: each runs once per folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import torch
from torch import Tensor

from ..core.progress import Progress
from ..distributed.workers import ALONE, Workers
from ..machine.memory import release_freed
from ..model.activations import Keep, in_memory
from ..model.block_forward import StoppedForward, TappedBlock
from ..model.blocks import BlockSource
from .few_visits import VISITS, Visits, least_share
from .gradients import backward_blocks
from .moments import Moment
from .store import Kind, Statistics

SIGMA, HELD_OUT, GRADIENT, MEAN_ABS, ROWS = "sigma/", "held-out/", "gradient/", "mean-abs/", "rows/"
"""Prefixes of the stored names, before an input group's or a linear's."""


@torch.no_grad()
def gather_dense(
    blocks: BlockSource,
    chunks: Sequence[Tensor],
    held_out: Sequence[Tensor],
    store: Statistics,
    progress: Progress,
    keep: Keep = in_memory,
    workers: Workers = ALONE,
) -> None:
    """Per input group: Sigma, mean |x|, and Sigma of held-out windows, over the dense model's activations.

    Args:
        blocks: the dense model.
        chunks: calibration windows, (B, T) each; this process's.
        held_out: windows that no factor is fitted on; this process's.
        store: filled with kind "dense".
        progress: receives blocks.
        keep: where the residual streams lie between blocks.
        workers: of the job.
    """
    if _kept("dense", blocks, store):
        return
    streams = keep(blocks.embed([*chunks, *held_out]))
    (tokens,) = workers.totals([sum(chunk.numel() for chunk in chunks)])
    shapes = _shapes(blocks)
    share = least_share(blocks, int(tokens))
    features = {group.name: shapes[group.linears[0]][1] for group in blocks.family.groups}
    with progress.stage("activations of the dense model", blocks.block_count) as advance:
        for index in range(blocks.block_count):
            block = blocks.block(index)
            tapped, visits = TappedBlock(block, blocks.family, share=share), Visits(blocks)
            fitted = {group.name: Moment() for group in blocks.family.groups}
            kept = {group.name: Moment() for group in blocks.family.groups}
            mean_abs = {name: torch.zeros(size, device=blocks.device) for name, size in features.items()}
            for chunk, stream in enumerate(streams):
                forward = StoppedForward(lambda block=block, stream=stream: blocks.run(block, stream))  # type: ignore[misc]
                for group in blocks.family.groups:
                    x = forward.next_input()
                    (fitted if chunk < len(chunks) else kept)[group.name].add(x)
                    if chunk < len(chunks):
                        mean_abs[group.name] += x.abs().float().sum(dim=0)
                streams[chunk] = forward.finish()
                if chunk < len(chunks):
                    visits.add(tapped.experts)
            for name, size in features.items():
                workers.all_reduce_(mean_abs[name])
                for moment in (fitted[name], kept[name]):
                    moment.all_reduce_((size, size), workers, blocks.device)
            del moment  # the largest, which would stay beside the next block's
            seen = {name: max(1, moment.tokens) for name, moment in fitted.items()}
            found = _means(fitted, SIGMA) | _means(kept, HELD_OUT)
            found |= {MEAN_ABS + name: total / seen[name] for name, total in mean_abs.items()}
            store.save("dense", index, found | visits.total(workers))
            del block, tapped, forward, found
            release_freed()
            advance(1)


def gather_gradients(
    blocks: BlockSource,
    windows: Tensor,
    seed: int,
    store: Statistics,
    progress: Progress,
    keep: Keep = in_memory,
    workers: Workers = ALONE,
) -> None:
    """Per linear G, the second moment of the loss gradient at its outputs; per input group Sigma over the same windows.

    Labels are drawn from the model, so that G and Sigma are the Kronecker factors of its Fisher information (KFAC).

    Args:
        blocks: the dense model.
        windows: token ids (N, T); a handful is enough.
        seed: of the labels.
        store: filled with kind "gradients".
        progress: receives blocks.
        keep: where residual streams and gradients lie, see `backward_blocks`.
        workers: of the job.
    """
    if _kept("gradients", blocks, store):
        return
    groups = {group.linears[0]: group.name for group in blocks.family.groups}
    shapes = _shapes(blocks)
    sizes = {GRADIENT + name: out for name, (out, _) in shapes.items()}
    sizes |= {SIGMA + group: shapes[linear][1] for linear, group in groups.items()}
    moments: dict[str, Moment] = {}
    visits = Visits(blocks)

    def observe(linear: str, x: Tensor, gradient: Tensor) -> None:
        moments.setdefault(GRADIENT + linear, Moment()).add(gradient.flatten(0, -2))
        if linear in groups:
            moments.setdefault(SIGMA + groups[linear], Moment()).add(x.flatten(0, -2))

    passed_blocks = backward_blocks(
        blocks, windows, seed, observe, progress, keep, workers, lambda experts: visits.add(experts)
    )
    with closing(passed_blocks) as passed:
        for index in passed:
            for name, size in sizes.items():
                moments.setdefault(name, Moment()).all_reduce_((size, size), workers, blocks.device)
            store.save("gradients", index, _means(moments) | visits.total(workers))
            visits = Visits(blocks)
            release_freed()


def gather_fisher(
    blocks: BlockSource,
    windows: Tensor,
    store: Statistics,
    progress: Progress,
    keep: Keep = in_memory,
    workers: Workers = ALONE,
) -> None:
    """Per linear and input feature: the Fisher information of its weights, meaned over windows and output features.

    The empirical Fisher of FWSVD (ICLR 2022): squares of the gradient of each window's loss against the text itself.

    Args:
        blocks: the dense model.
        windows: token ids (N, T).
        store: filled with kind "fisher".
        progress: receives blocks.
        keep: where residual streams and gradients lie, see `backward_blocks`.
        workers: of the job.
    """
    if _kept("fisher", blocks, store):
        return
    rows = {
        name: torch.zeros(features, dtype=torch.float64, device=blocks.device)
        for name, (_, features) in _shapes(blocks).items()
    }

    def observe(linear: str, x: Tensor, gradient: Tensor) -> None:
        if x.ndim == 2:  # tokens of an expert, which come of one window at a time
            x, gradient = x[None], gradient[None]
        for inputs, outputs in zip(x.float(), gradient.float(), strict=True):  # one window's weight gradient at a time
            rows[linear] += (outputs.T @ inputs).square().mean(dim=0).double()

    with closing(backward_blocks(blocks, windows, None, observe, progress, keep, workers)) as passed:
        for index in passed:
            for total in rows.values():
                workers.all_reduce_(total)
            store.save("fisher", index, {ROWS + name: total / len(windows) for name, total in rows.items()})
            for total in rows.values():
                total.zero_()


def _shapes(blocks: BlockSource) -> dict[str, tuple[int, int]]:
    """Linear (path inside a block) -> (out, in); all blocks are alike."""
    shapes = blocks.linear_shapes()
    return {name: shapes[blocks.family.linear_name(0, name)] for name in blocks.family.linears}


def _kept(kind: Kind, blocks: BlockSource, store: Statistics) -> bool:
    """Whether every block has its file already, in the shapes of this model.

    Raises:
        UsageError: a file is damaged.
    """
    if not store.has(kind, blocks.block_count):
        return False
    shapes = blocks.linear_shapes()
    for index in range(blocks.block_count):
        expected: dict[str, tuple[int, ...]] = {}
        for group in blocks.family.groups:
            for linear in group.linears:
                rows, columns = shapes[blocks.family.linear_name(index, linear)]
                if kind != "fisher":
                    expected[SIGMA + group.name] = (columns, columns)
                if kind == "dense":
                    expected[MEAN_ABS + group.name] = (columns,)
                elif kind == "gradients":
                    expected[GRADIENT + linear] = (rows, rows)
                else:
                    expected[ROWS + linear] = (columns,)
        if blocks.family.experts is not None and kind != "fisher":
            expected[VISITS] = (blocks.family.experts.number(blocks.reader.config), 2)
        store.check(kind, index, expected)
    return True


def _means(moments: dict[str, Moment], prefix: str = "") -> dict[str, Tensor]:
    """Their means, float32. The moments are let go one by one: together they are far larger than a block."""
    means = {}
    for name in list(moments):
        moment = moments.pop(name)
        if moment.tokens:
            means[prefix + name] = moment.mean().float()
    return means
