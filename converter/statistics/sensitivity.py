"""What rank allocations need to know of the dense model, measured block by block."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from ..allocation.adacr import similarity
from ..core.errors import InputError, way_out
from ..core.progress import Progress
from ..distributed.workers import ALONE, Workers
from ..factors.factorization import spectrum
from ..factors.whitening import gradient_metric, whiten
from ..model.blocks import BlockSource
from .calibration import Calibration
from .gathering import GRADIENT, SIGMA
from .store import Statistics

IMPORTANCE_WINDOWS = 4  # similarity is a mean over tokens: four windows of 1024 settle it


@contextmanager
def finite_activations(blocks: BlockSource, index: int) -> Iterator[None]:
    """Say in a line where a metric cannot be made, since moments of a block are not finite.

    Raises:
        InputError: instead of a ValueError.
    """
    try:
        yield
    except ValueError:
        dtype = str(blocks.dtype).removeprefix("torch.")
        raise InputError(
            f"{blocks.reader.path}: activations or gradients of block {index} go beyond {dtype}, or are NaN; "
            f"{way_out(dtype)}"
        ) from None


@torch.no_grad()
def block_similarities(
    blocks: BlockSource, calibration: Calibration, reading: str, progress: Progress, workers: Workers = ALONE
) -> tuple[float, ...]:
    """Similarity of input and output of every block of the dense model, one window at a time.

    The same bits for any number of workers: values of single windows are summed in the order of windows.
    """
    windows = list(torch.tensor(calibration.windows[:IMPORTANCE_WINDOWS]))
    streams = list(blocks.embed([window[None] for window in workers.part(windows)]))
    measured: list[list[float]] = []
    with progress.stage("block importance", blocks.block_count) as advance:
        for index in range(blocks.block_count):
            block = blocks.block(index)
            outputs = [blocks.run(block, x) for x in streams]
            measured.append([similarity(x, y, reading) for x, y in zip(streams, outputs, strict=True)])
            streams = outputs
            del block
            advance(1)
    per_block = zip(*workers.gathered(measured), strict=True)
    return tuple(sum(chain.from_iterable(parts)) / len(windows) for parts in per_block)


@torch.no_grad()
def stable_ranks(blocks: BlockSource, progress: Progress, workers: Workers = ALONE) -> dict[str, float]:
    """Linear -> ||W||_F / ||W||_2, 0 for a weight of zeros. Blocks are divided among workers."""
    result = {}
    with progress.stage("stable rank of every weight", blocks.block_count) as advance:
        for index in range(workers.index, blocks.block_count, workers.count):
            block = blocks.block(index)
            for name in blocks.family.linears:
                weight: Tensor = block.get_submodule(name).weight  # type: ignore[assignment]
                energies = spectrum(weight)
                ratio = float(energies.sum() / energies[0]) if energies[0] > 0 else 0.0
                result[blocks.family.linear_name(index, name)] = ratio**0.5
            del block, weight
            advance(workers.count)
    return dict(ChainMap(*workers.gathered(result)))


@torch.no_grad()
def loss_energies(
    blocks: BlockSource,
    store: Statistics,
    kind: Literal["dense", "gradients"],
    progress: Progress,
    workers: Workers = ALONE,
) -> dict[str, Tensor]:
    """Linear -> squared singular values in a metric, descending, on the CPU.

    With "gradients" the metric is two-sided, and they are twice the loss that dropping each adds; with "dense" it is
    Sigma alone, and they are the mean squared output error per token. Blocks are divided among workers.
    """
    energies = {}
    with progress.stage("loss of every rank", blocks.block_count) as advance:
        for index in range(workers.index, blocks.block_count, workers.count):
            block = blocks.block(index)
            for group in blocks.family.groups:
                with finite_activations(blocks, index):
                    inputs = whiten(store.read_one(kind, index, blocks.device, SIGMA + group.name))
                for name in group.linears:
                    weight: Tensor = block.get_submodule(name).weight  # type: ignore[assignment]
                    outputs = None
                    if kind == "gradients":
                        with finite_activations(blocks, index):
                            outputs = gradient_metric(store.read_one(kind, index, blocks.device, GRADIENT + name))
                    energies[blocks.family.linear_name(index, name)] = spectrum(weight, inputs, outputs).cpu()
                    del outputs, weight
                del inputs
            del block
            advance(workers.count)
    return dict(ChainMap(*workers.gathered(energies)))
