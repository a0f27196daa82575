"""The residual streams of the compressed and the dense model, carried block by block while factors take their place."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from .block_fit import BlockFit
from .core.progress import Progress
from .factors.fit import FitLoss
from .families.family import InputGroup
from .machine.memory import release_freed
from .model.activations import Activations
from .model.block_forward import TappedBlock
from .model.passes import Pass, RecomputedPass, SuspendedPass
from .planning.job import Job
from .statistics.few_visits import least_share
from .statistics.moments import GroupMoments
from .training.descent import Schedule
from .training.refinement import Examples, refine_block


class Streams:
    """The residual streams of the compressed and, where they are compared, of the dense model between two blocks.

    Each process of the job carries those of its windows; what it gathers there is added up over all.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.dense: Activations = []
        self.compressed: Activations = []
        self.fitted_chunks = len(job.chunks)
        self.refines = job.refines
        (tokens,) = job.workers.totals([sum(chunk.numel() for chunk in job.chunks)])
        self.share = least_share(job.blocks, int(tokens))
        self.runs = job.method.needs_compressed_stream or self.refines
        # a linear that is worth its full rank still answers for the error before it; one the user excluded does not
        self.counted = {linear.shape.name for linear in job.plan.linears if linear.compressed}
        if self.runs:
            self.compressed = job.keep(job.blocks.embed([*job.chunks, *job.held_out_chunks]))
            self.dense = job.keep(self.compressed) if job.method.aligned or self.refines else []

    def compress_block(self, index: int, block: nn.Module, progress: Progress) -> dict[str, FitLoss]:
        """Replace the block's linears by factors, in place, and carry the streams through it."""
        family = self.job.source.family
        tapped, beside = TappedBlock(block, family, share=self.share), None
        compressed, dense = self._pass(block, self.compressed), None
        fit = BlockFit(self.job, index, tapped, self.counted)
        fit.truncate_ahead()
        losses: dict[str, FitLoss] = {}
        sequential, waiting = self.job.method.installs == "sequential", dict[InputGroup, GroupMoments]()
        for number, group in enumerate(family.groups):
            found, last_group = self.job.dense_moments(index, group), group is family.groups[-1]
            if self.dense and dense is None:  # compared token by token: the two streams stop side by side
                beside = TappedBlock(self.job.blocks.block(index), family, beside=tapped)
                dense = self._pass(beside.block, self.dense)
            narrow = _narrow(beside, group)
            for chunk in range(len(self.compressed)):
                y = compressed.input(chunk, number)
                x = dense.input(chunk, number)[: len(y)] if dense else None  # what experts there see besides comes last
                self._gather(chunk, y, x, narrow, found)
                del y, x
                if dense and last_group:  # nothing left to stop for: free what it holds
                    self.dense[chunk] = dense.output(chunk)
            if self.job.memory.repeats:
                compressed.abandon()
            if dense and (last_group or self.job.memory.repeats):
                dense.abandon()
                dense = beside = None  # the block is read again where it is wanted
            if self.runs:
                self._all_reduce_(found, group, tapped)
            waiting[group] = found
            del found, narrow
            if sequential or last_group:
                losses |= fit.install(waiting)
                release_freed()
        last = index + 1 == self.job.blocks.block_count
        if self.refines:
            compressed.abandon()
            tapped.unwrap()
            self._refine(index, block, progress)
            return losses
        if sequential and not last:
            for chunk in range(len(self.compressed)):
                self.compressed[chunk] = compressed.output(chunk)
        compressed.abandon()
        tapped.unwrap()
        if not sequential and not last:  # the forward above went through the dense linears
            self._advance(self.compressed, block)
        return losses

    def pass_block(self, index: int, block: nn.Module) -> None:
        """Carry the streams through a block that was compressed before."""
        if index + 1 == self.job.blocks.block_count:
            return
        self._advance(self.compressed, block)
        if self.dense:
            self._advance(self.dense, self.job.blocks.block(index))

    def _pass(self, block: nn.Module, stream: Activations) -> Pass:
        return (RecomputedPass if self.job.memory.repeats else SuspendedPass)(self.job.blocks.run, block, stream)

    def _advance(self, stream: Activations, block: nn.Module) -> None:
        """Carry a stream through a block."""
        for chunk, x in enumerate(stream):
            stream[chunk] = self.job.blocks.run(block, x)

    def _refine(self, index: int, block: nn.Module, progress: Progress) -> None:
        """Fit the block's parameters to the dense block's output, which `dense` holds by now."""
        job, recipe, run = self.job, self.job.recipe, self.job.blocks.run
        share = recipe.refine_alpha
        targets: Iterable[Tensor] = self.dense
        if share < 1:
            dense_block = job.blocks.block(index)
            pairs = zip(self.compressed, self.dense, strict=True)
            targets = [share * y + (1 - share) * run(dense_block, x) for x, y in pairs]
        windows = [w for x in self.compressed for w in x]
        wanted = [w for y in targets for w in y]
        fitted = sum(len(x) for x in job.chunks)
        root = job.output_root(index, job.source.family.residual_linear).root
        done = refine_block(
            block.float(),
            run,
            Examples(windows, wanted, fitted),
            root=root,
            frozen=self._excluded_parameters(index, block),
            schedule=Schedule(recipe.refine_epochs, recipe.refine_rate, recipe.seed),
            workers=job.workers,
        )
        block.to(job.blocks.dtype)
        progress.note(f"block {index}: held-out {done.before:.4g} -> {done.after:.4g} in {done.epochs} epochs")
        if index + 1 < job.blocks.block_count:
            self._advance(self.compressed, block)

    def _excluded_parameters(self, index: int, block: nn.Module) -> list[nn.Parameter]:
        """Parameters of the linears that the user keeps as they are."""
        family = self.job.source.family
        kept = [name for name in family.linears if family.linear_name(index, name) not in self.counted]
        return [parameter for name in kept for parameter in block.get_submodule(name).parameters()]

    def _gather(self, chunk: int, y: Tensor, x: Tensor | None, narrow: Tensor | None, found: GroupMoments) -> None:
        """Add a group's inputs in the compressed stream, and the same tokens in the dense one where both run."""
        if chunk >= self.fitted_chunks:
            found.held_out.add(y)
            return
        found.compressed.add(y)
        if self.job.recipe.calibration_reduction == "stack-of-batch" and self.job.method.compensation == "adacomp":
            length = self.compressed[chunk].shape[1]
            found.stacked.add(y.reshape(-1, length, y.shape[-1]).float().mean(dim=0))
        if x is None or not self.job.method.aligned:
            return
        if narrow is not None:
            found.output_cross_moment.add_cross(self.job.blocks.project(narrow, x - y), y)
        else:
            found.cross_moment.add_cross(x - y, y)

    def _all_reduce_(self, found: GroupMoments, group: InputGroup, tapped: TappedBlock) -> None:
        """Add what the other processes gathered."""
        workers, device = self.job.workers, self.job.blocks.device
        weight: Tensor = tapped.linear(group.linears[0]).weight  # type: ignore[assignment]
        outputs, features = weight.shape
        for moment in (found.compressed, found.cross_moment, found.stacked, found.held_out):
            moment.all_reduce_((features, features), workers, device)
        found.output_cross_moment.all_reduce_((outputs, features), workers, device)


def _narrow(dense: TappedBlock | None, group: InputGroup) -> Tensor | None:
    """W (m, n) of a group's one linear where m < n: the cross moment of its outputs is the smaller matrix."""
    if dense is None or len(group.linears) != 1:
        return None
    weight: Tensor = dense.linear(group.linears[0]).weight  # type: ignore[assignment]
    return weight if weight.shape[0] < weight.shape[1] else None
