"""The residual streams of the compressed and the dense model, carried block by block while factors take their place."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from .architectures import InputGroup
from .block_fit import BlockFit
from .block_forward import StoppedForward, TappedBlock
from .fit import FitLoss
from .gathering import GRADIENT
from .memory import release_freed
from .moments import GroupMoments
from .planning import Job
from .progress import Progress
from .refinement import Schedule, refine_block
from .whitening import gradient_root


class Streams:
    """The residual streams of the compressed and, where they are compared, of the dense model between two blocks.

    Each process of the job carries those of its windows; what it gathers there is added up over all.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.dense: list[Tensor] = []
        self.compressed: list[Tensor] = []
        self.fitted_chunks = len(job.chunks)
        self.refines = job.refines
        self.runs = job.method.needs_compressed_stream or self.refines
        # a linear that is worth its full rank still answers for the error before it; one the user excluded does not
        self.counted = {linear.shape.name for linear in job.plan.linears if linear.compressed}
        if self.runs:
            self.compressed = job.blocks.embed([*job.chunks, *job.held_out_chunks])
            self.dense = list(self.compressed) if job.method.aligned or self.refines else []

    def compress_block(self, index: int, block: nn.Module, progress: Progress) -> dict[str, FitLoss]:
        """Replace the block's linears by factors, in place, and carry the streams through it."""
        family, run = self.job.source.family, self.job.blocks.run
        tapped = TappedBlock(block, family)
        compressed = [StoppedForward(partial(run, block, x)) for x in self.compressed]
        dense: list[StoppedForward] = []
        if self.dense:  # compared token by token: the two streams stop side by side
            dense_block = TappedBlock(self.job.blocks.block(index), family)
            dense = [StoppedForward(partial(run, dense_block.block, x)) for x in self.dense]
        moments = self.job.dense_moments(index)
        fit = BlockFit(self.job, index, tapped, self.counted, progress)
        fit.truncate_ahead(moments)
        losses: dict[str, FitLoss] = {}
        in_passing, waiting = self.job.method.installs == "in passing", list[InputGroup]()
        for group in family.groups:
            found = moments[group.name]
            for chunk, forward in enumerate(compressed):
                y, x = forward.next_input(), dense[chunk].next_input() if dense else None
                self._gather(chunk, y, x, found)
                if dense and group is family.groups[-1]:  # nothing left to stop for: free what it holds
                    self.dense[chunk] = dense[chunk].finish()
            if self.runs:
                self._add_up(found, tapped.linear(group.linears[0]))
            waiting.append(group)
            if in_passing or group is family.groups[-1]:
                losses |= fit.install(waiting, moments)
                waiting.clear()
                release_freed()
        last = index + 1 == self.job.blocks.block_count
        if self.refines:
            for forward in compressed:
                forward.abandon()
            tapped.unwrap()
            self._refine(index, block, progress)
            return losses
        if in_passing and not last:
            for chunk, forward in enumerate(compressed):
                self.compressed[chunk] = forward.finish()
        tapped.unwrap()
        if not in_passing and not last:  # the forward above went through the dense linears
            self.compressed = [run(block, x) for x in self.compressed]
        return losses

    def pass_block(self, index: int, block: nn.Module) -> None:
        """Carry the streams through a block that was compressed before."""
        run = self.job.blocks.run
        if index + 1 == self.job.blocks.block_count:
            return
        self.compressed = [run(block, x) for x in self.compressed]
        if self.dense:
            dense_block = self.job.blocks.block(index)
            self.dense = [run(dense_block, x) for x in self.dense]

    def _refine(self, index: int, block: nn.Module, progress: Progress) -> None:
        """Fit the block's parameters to the dense block's output, which `dense` holds by now."""
        job, recipe, run = self.job, self.job.recipe, self.job.blocks.run
        share, targets = recipe.refine_alpha, self.dense
        if share < 1:
            dense_block, targets = job.blocks.block(index), []
            for x, y in zip(self.compressed, self.dense, strict=True):
                targets.append(share * y + (1 - share) * run(dense_block, x))
        windows = [w for x in self.compressed for w in x]
        wanted = [w for y in targets for w in y]
        fitted = sum(len(x) for x in self.compressed[: self.fitted_chunks])  # of this process
        gradients = job.statistics.read("gradients", index, job.blocks.device)
        root = gradient_root(gradients[GRADIENT + job.source.family.residual_linear])
        done = refine_block(
            block.float(),
            run,
            windows,
            wanted,
            fitted,
            root=root,
            frozen=self._excluded_parameters(index, block),
            schedule=Schedule(recipe.refine_epochs, recipe.refine_rate, recipe.seed),
            workers=job.workers,
        )
        block.to(job.blocks.dtype)
        progress.note(f"block {index}: held-out {done.before:.4g} -> {done.after:.4g} in {done.epochs} epochs")
        if index + 1 < job.blocks.block_count:
            self.compressed = [run(block, x) for x in self.compressed]

    def _excluded_parameters(self, index: int, block: nn.Module) -> list[nn.Parameter]:
        """Parameters of the linears that the user keeps as they are."""
        family = self.job.source.family
        kept = [name for name in family.linears if family.linear_name(index, name) not in self.counted]
        return [parameter for name in kept for parameter in block.get_submodule(name).parameters()]

    def _gather(self, chunk: int, y: Tensor, x: Tensor | None, found: GroupMoments) -> None:
        """Add a group's inputs in the compressed stream, and the same tokens in the dense one where both run."""
        if chunk >= self.fitted_chunks:
            found.held_out.add(y)
            return
        found.compressed.add(y)
        if self.job.recipe.calibration_reduction == "stack-of-batch" and self.job.method.compensation == "adacomp":
            length = self.compressed[chunk].shape[1]
            found.stacked.add(y.reshape(-1, length, y.shape[-1]).float().mean(dim=0))
        if x is not None:
            found.cross.add_cross(x, y)

    def _add_up(self, found: GroupMoments, linear: nn.Module) -> None:
        """Add what the other processes gathered."""
        features = int(linear.in_features)  # type: ignore[arg-type]
        for moment in (found.compressed, found.cross, found.stacked, found.held_out):
            moment.add_up(features, self.job.workers, self.job.blocks.device)
