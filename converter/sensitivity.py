"""What rank allocations need to know of the dense model, measured block by block."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .allocation.adacr import similarity
from .blocks import BlockSource
from .calibration import Calibration
from .factorisation import spectrum
from .gathering import GRADIENT, SIGMA
from .progress import Progress
from .statistics import Statistics
from .whitening import gradient_metric, whiten

IMPORTANCE_WINDOWS = 4  # similarity is a mean over tokens: four windows of 1024 settle it


@torch.no_grad()
def block_similarities(
    blocks: BlockSource, calibration: Calibration, reading: str, progress: Progress
) -> tuple[float, ...]:
    """Similarity of input and output of every block of the dense model, one window at a time."""
    windows = torch.tensor(calibration.windows[:IMPORTANCE_WINDOWS])
    streams = list(blocks.embed([window[None] for window in windows]))
    result = []
    with progress.stage("block importance", blocks.block_count) as advance:
        for index in range(blocks.block_count):
            block = blocks.block(index)
            outputs = [blocks.run(block, x) for x in streams]
            values = [similarity(x, y, reading) for x, y in zip(streams, outputs, strict=True)]
            result.append(sum(values) / len(values))
            streams = outputs
            del block
            advance(1)
    return tuple(result)


@torch.no_grad()
def stable_ranks(blocks: BlockSource, progress: Progress) -> dict[str, float]:
    """Linear -> ||W||_F / ||W||_2, 0 for a weight of zeros."""
    result = {}
    with progress.stage("stable rank of every weight", blocks.block_count) as advance:
        for index in range(blocks.block_count):
            block = blocks.block(index)
            for name in blocks.family.linears:
                weight: Tensor = block.get_submodule(name).weight  # type: ignore[assignment]
                energies = spectrum(weight)
                ratio = float(energies.sum() / energies[0]) if energies[0] > 0 else 0.0
                result[blocks.family.linear_name(index, name)] = ratio**0.5
            del block, weight
            advance(1)
    return result


@torch.no_grad()
def loss_energies(
    blocks: BlockSource, store: Statistics, kind: Literal["dense", "gradients"], progress: Progress
) -> dict[str, Tensor]:
    """Linear -> squared singular values in a metric, descending.

    With "gradients" the metric is two-sided, and they are twice the loss that dropping each adds; with "dense" it is
    Sigma alone, and they are the mean squared output error per token.
    """
    energies = {}
    with progress.stage("loss of every rank", blocks.block_count) as advance:
        for index in range(blocks.block_count):
            block = blocks.block(index)
            for group in blocks.family.groups:
                inputs = whiten(store.read_one(kind, index, blocks.device, SIGMA + group.name))
                for name in group.linears:
                    weight: Tensor = block.get_submodule(name).weight  # type: ignore[assignment]
                    outputs = None
                    if kind == "gradients":
                        outputs = gradient_metric(store.read_one(kind, index, blocks.device, GRADIENT + name))
                    energies[blocks.family.linear_name(index, name)] = spectrum(weight, inputs, outputs)
                    del outputs, weight
                del inputs
            del block
            advance(1)
    return energies
