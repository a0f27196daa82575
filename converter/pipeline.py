"""The only place that orders stages: moments, factors and the factored checkpoint, block by block."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .architectures import InputGroup
from .block_forward import StoppedForward, TappedBlock
from .checkpoint_writer import CheckpointWriter
from .errors import InputError
from .files import check_output, replacing
from .fit import FitLoss, GroupMetric, fit_linear, group_metric
from .lowrank_linear import LowRankLinear
from .model_card import model_card
from .moments import GroupMoments
from .pivot_block import pivot_block
from .planning import Job, prepare
from .progress import Progress, SilentProgress
from .recipe import RECIPE_FILE, Recipe

CHUNK_TOKENS = 4096  # tokens per forward: large enough for the matmuls, small enough for memory


@dataclass(frozen=True)
class Compression:
    """A finished factored checkpoint.

    Attributes:
        path: its folder.
        plan: as in plan.json.
        seconds: wall-clock seconds of the blocks' work.
    """

    path: Path
    plan: dict[str, Any]
    seconds: float


def compress(
    recipe: Recipe, out: Path, *, device: str = "auto", force: bool = False, progress: Progress | None = None
) -> Compression:
    """Compress a model into a factored checkpoint.

    Args:
        recipe: what to do.
        out: the folder to make; it appears whole or not at all.
        device: "auto", "cpu", "cuda".
        force: replace `out` if it exists.

    Raises:
        UsageError, InputError, ResourceError: one line each, see converter.errors.
    """
    check_output(out, force)
    progress = progress or SilentProgress()
    return execute(prepare(recipe, device=device, progress=progress), out, force=force, progress=progress)


@torch.no_grad()
def execute(job: Job, out: Path, *, force: bool, progress: Progress) -> Compression:
    """Carry out a prepared job."""
    started = time.perf_counter()
    losses: dict[str, FitLoss] = {}
    with replacing(out, force=force, folder=True) as folder:
        writer = CheckpointWriter(folder)
        with progress.stage(f"compressing ({job.recipe.method})", job.blocks.block_count) as advance:
            for index, tensors, block_losses in _compressed_blocks(job, progress):
                writer.write_shard(f"block-{index:05d}", tensors)
                losses.update(block_losses)
                advance(1)
        writer.write_shard("rest", _rest(job))
        plan = _plan_with_losses(job, losses)
        writer.finish(job.blocks.reader, _config(job), _texts(job, plan))
    return Compression(out, plan, time.perf_counter() - started)


def _compressed_blocks(job: Job, progress: Progress) -> Iterator[tuple[int, dict[str, Tensor], dict[str, FitLoss]]]:
    """Per block: its index, its tensors under their checkpoint names, the losses of its linears."""
    streams = _Streams(job)
    for index in range(job.blocks.block_count):
        block = job.blocks.block(index)
        losses = streams.compress_block(index, block, progress)
        if job.recipe.layout == "pivot":
            pivot_block(block, job.source.family)
        prefix = f"{job.source.family.blocks}.{index}"
        yield index, {f"{prefix}.{name}": tensor for name, tensor in block.state_dict().items()}, losses


class _Streams:
    """The residual streams of the dense and of the compressed model between two blocks, in chunks of windows."""

    def __init__(self, job: Job) -> None:
        self.job, method = job, job.method
        self.dense: list[Tensor] = []
        self.compressed: list[Tensor] = []
        self.fitted_chunks = 0
        if job.calibration is None:
            return
        chunks = _chunks(job)
        self.fitted_chunks = len(chunks)
        if len(job.calibration.held_out):
            chunks.append(torch.from_numpy(job.calibration.held_out))
        embedded = job.blocks.embed(chunks)
        if method.needs_dense_stream:
            self.dense = list(embedded)
        if method.needs_compressed_stream or method.alpha > 0:
            self.compressed = list(embedded)

    def compress_block(self, index: int, block: nn.Module, progress: Progress) -> dict[str, FitLoss]:
        """Replace the block's linears by factors, in place, and carry the streams through it."""
        family, run = self.job.source.family, self.job.blocks.run
        tapped = TappedBlock(block, family)
        moments = [GroupMoments() for _ in family.groups]
        paired: list[StoppedForward] = []
        if self.job.method.alpha > 0:  # the two streams are compared token by token: they stop side by side
            dense_block = TappedBlock(self.job.blocks.block(index), family)
            paired = [StoppedForward(partial(run, dense_block.block, x)) for x in self.dense]
        else:  # the dense stream goes first, a chunk at a time, through the linears as they still are
            for chunk, x in enumerate(self.dense):
                self.dense[chunk] = self._gather_dense(chunk, StoppedForward(partial(run, block, x)), moments)
        compressed = [StoppedForward(partial(run, block, x)) for x in self.compressed]
        losses: dict[str, FitLoss] = {}
        for group, found in zip(family.groups, moments, strict=True):
            for chunk, forward in enumerate(compressed):
                pair = paired[chunk].next_input() if paired else None
                self._gather_compressed(chunk, forward.next_input(), pair, found)
            losses.update(self._install_group(index, group, tapped, self._group_metric(index, group, found), progress))
        if index + 1 < self.job.blocks.block_count:
            self.compressed = [forward.finish() for forward in compressed]
            if paired:
                self.dense = [forward.finish() for forward in paired]
        tapped.unwrap()
        return losses

    def _gather_dense(self, chunk: int, forward: StoppedForward, moments: list[GroupMoments]) -> Tensor:
        """Carry a chunk of the dense stream through the block, adding to each group's moments; returns its output."""
        for found in moments:
            x = forward.next_input()
            if chunk < self.fitted_chunks:
                found.dense.add(x)
            elif not self.compressed:
                found.held_out.add(x)
        return forward.finish()

    def _gather_compressed(self, chunk: int, y: Tensor, x: Tensor | None, found: GroupMoments) -> None:
        """Add a group's inputs in the compressed stream, and the same tokens in the dense one where they are paired."""
        if chunk >= self.fitted_chunks:
            found.held_out.add(y)
            return
        found.compressed.add(y)
        if self.job.recipe.calibration_reduction == "stack-of-batch" and self.job.method.compensation == "adacomp":
            length = self.compressed[chunk].shape[1]
            found.stacked.add(y.reshape(-1, length, y.shape[-1]).float().mean(dim=0))
        if x is not None:
            found.dense.add(x)
            found.cross.add_cross(x, y)

    def _group_metric(self, index: int, group: InputGroup, moments: GroupMoments) -> GroupMetric:
        """What the group's linears are fitted with."""
        method, reduction = self.job.method, self.job.recipe.calibration_reduction
        try:
            return group_metric(method, moments, reduction)
        except ValueError:
            raise InputError(
                f"{self.job.recipe.model}: activations at {group.name!r} of block {index} hold NaN or Inf in "
                f"{self.job.recipe.dtype}; use --dtype float32, or check the model"
            ) from None

    def _install_group(
        self, index: int, group: InputGroup, tapped: TappedBlock, metric: GroupMetric, progress: Progress
    ) -> dict[str, FitLoss]:
        """Factor the group's linears and put the factors in their place."""
        losses = {}
        if metric.whitener is not None and metric.whitener.how != "cholesky":
            progress.note(f"block {index}, {group.name}: singular second moment, whitened by {metric.whitener.how}")
        for name in group.linears:
            full_name = self.job.source.family.linear_name(index, name)
            rank = self.job.plan.ranks.get(full_name)
            if rank is None:
                continue
            linear = tapped.linear(name)
            assert isinstance(linear, nn.Linear)
            factors, loss = fit_linear(linear.weight, rank, metric, iterations=self.job.recipe.iterations)
            tapped.install(name, _as_module(linear, factors.u, factors.v))
            if loss is not None:
                losses[full_name] = loss
        return losses


def _chunks(job: Job) -> list[Tensor]:
    """Shuffled calibration windows in chunks: buckets for stack-of-batch, else as many as memory likes."""
    assert job.calibration is not None
    windows, recipe = job.calibration.windows, job.recipe
    order = np.random.default_rng(recipe.seed).permutation(len(windows))
    if recipe.calibration_reduction == "stack-of-batch":
        size = -(-len(windows) // min(recipe.buckets, len(windows)))
    else:
        size = max(1, CHUNK_TOKENS // windows.shape[1])
    return [torch.from_numpy(windows[order[i : i + size]]) for i in range(0, len(order), size)]


def _as_module(linear: nn.Linear, u: Tensor, v: Tensor) -> LowRankLinear:
    weight = linear.weight
    module = LowRankLinear(linear.in_features, linear.out_features, u.shape[1], bias=False, device="meta")
    module.lowrank_u.weight = nn.Parameter(u.to(weight.dtype), requires_grad=False)
    module.lowrank_v.weight = nn.Parameter(v.to(weight.dtype), requires_grad=False)
    module.bias = linear.bias
    return module


def _rest(job: Job) -> dict[str, Tensor]:
    """Everything outside the blocks, as stored."""
    reader, prefix = job.blocks.reader, job.source.family.blocks + "."
    tensors = {name: reader.tensor(name) for name in reader.names if not name.startswith(prefix)}
    return {name: t.to(job.blocks.dtype) if t.is_floating_point() else t for name, t in tensors.items()}


def _config(job: Job) -> dict[str, Any]:
    lowrank = {
        "quant_method": "lowrank",
        "layout": job.recipe.layout,
        "method": job.recipe.method,
        "retention": job.plan.retention,
        "ranks": job.plan.ranks,
    }
    return {**job.blocks.reader.config, "dtype": job.recipe.dtype, "quantization_config": lowrank}


def _plan_with_losses(job: Job, losses: dict[str, FitLoss]) -> dict[str, Any]:
    plan = job.plan.to_json()
    for name, loss in losses.items():
        plan["linears"][name]["relative_loss"] = asdict(loss)
    return plan


def _texts(job: Job, plan: dict[str, Any]) -> dict[str, str]:
    calibration = job.calibration.record() if job.calibration else {}
    provenance = {
        "source": job.source.spec,
        "source_sha256": job.source.fingerprint(),
        "source_licence": job.source.licence,
    }
    return {
        RECIPE_FILE: job.recipe.to_yaml(),
        "plan.json": json.dumps(plan, indent=2) + "\n",
        "calibration.json": json.dumps({**calibration, **provenance}, indent=2) + "\n",
        "README.md": model_card(job.recipe, job.source, plan),
    }
