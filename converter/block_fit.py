"""The linears of one block: each process of the job fits its share, all install all of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

from torch import Tensor, nn

from .checkpoint.lowrank_linear import LowRankLinear
from .core.errors import InputError, way_out
from .distributed.workers import Parcel
from .factors.factorization import LowRankFactors
from .factors.fit import FitLoss, GroupMetric, align_dense, fit_linear, group_metric, group_whitener, truncate
from .factors.whitening import OutputRoot, Whitener
from .families.family import InputGroup
from .model.block_forward import TappedBlock
from .planning.job import Job
from .statistics.moments import GroupMoments


class BlockFit:
    """Replaces the linears of a block by factors, group by group.

    Args:
        job: method, ranks, statistics and the processes.
        index: of the block.
        tapped: the block.
        counted: full names of the linears that the user does not exclude.
    """

    def __init__(self, job: Job, index: int, tapped: TappedBlock, counted: Collection[str]) -> None:
        self.job, self.index, self.tapped, self.counted = job, index, tapped, counted
        self._fisher = job.fisher(index)
        self._whiteners: dict[str, Whitener | None] = {}
        self._truncated: dict[str, tuple[LowRankFactors, Tensor]] = {}
        # where the truncation does not see the compressed stream, all of the block's are shared out at once
        self._at_once = job.workers.count > 1 and job.method.metric != "compressed"

    def truncate_ahead(self) -> None:
        """Truncate this process's linears of the whole block, where that need not wait for the stream."""
        if not self._at_once:
            return
        for group in self.job.source.family.groups:
            mine = [(name, rank) for name in self._mine(group, self._block_owners) if (rank := self._rank(name))]
            if not mine:
                continue
            with self._named(group):
                whitener = group_whitener(self.job.method, self.job.dense_moments(self.index, group))
            for name, rank in mine:
                weight, outputs = self._linear(name).weight.double(), self._outputs(name)
                fisher = self._fisher.get(name)
                self._truncated[name] = truncate(weight, rank, whitener, outputs=outputs, fisher=fisher)
            self._whiteners[group.name] = whitener

    def install(self, waiting: dict[InputGroup, GroupMoments]) -> dict[str, FitLoss]:
        """Fit the linears of groups whose moments are complete and put what comes out in their place.

        Args:
            waiting: those groups and their moments, which are let go one by one.

        Returns:
            Full linear name -> its losses, for those that were factored.
        """
        workers, groups = self.job.workers, list(waiting)
        owners = self._block_owners if self._at_once else self._owners(groups)
        parcels, losses = dict[str, Parcel](), dict[str, FitLoss]()
        for group in groups:
            moments, mine = waiting.pop(group), self._mine(group, owners)
            metric = self._metric(group, moments) if mine else None
            del moments
            for name in mine:
                assert metric is not None
                parcels[name] = self._fit(name, metric)
            del metric
        for name in [name for group in groups for name in group.linears if name in owners]:
            parcel = workers.sent(parcels.pop(name, None), owners[name], self.job.blocks.device)
            self._put(name, parcel.tensors)
            if parcel.facts is not None:
                losses[self._full_name(name)] = parcel.facts
        return losses

    @cached_property
    def _block_owners(self) -> dict[str, int]:
        return self._owners(self.job.source.family.groups)

    def _owners(self, groups: Iterable[InputGroup]) -> dict[str, int]:
        """Linear -> the process that fits it, for those that are fitted at all."""
        costs = {}
        for name in [name for group in groups for name in group.linears]:
            m, n = self._linear(name).weight.shape
            if self._rank(name) or (self._full_name(name) in self.counted and self.job.method.aligned):
                costs[name] = float(m * n * min(m, n))
        return self.job.workers.owners(costs)

    def _mine(self, group: InputGroup, owners: Mapping[str, int]) -> list[str]:
        return [name for name in group.linears if owners.get(name) == self.job.workers.index]

    def _metric(self, group: InputGroup, moments: GroupMoments) -> GroupMetric:
        """What the group's linears are fitted with."""
        known = self._whiteners.pop(group.name, None)
        with self._named(group):
            return group_metric(self.job.method, moments, self.job.recipe.calibration_reduction, known)

    @contextmanager
    def _named(self, group: InputGroup) -> Iterator[None]:
        """Name the group whose moments are not finite."""
        try:
            yield
        except ValueError:
            raise InputError(
                f"{self.job.recipe.model}: activations at {group.name!r} of block {self.index} hold NaN or Inf in "
                f"{self.job.recipe.dtype}; {way_out(self.job.recipe.dtype)}"
            ) from None

    def _fit(self, name: str, metric: GroupMetric) -> Parcel:
        """Factors of a linear and their losses, or its weight where it keeps its rank: it answers for the error before
        it."""
        linear, rank = self._linear(name), self._rank(name)
        if rank is None:
            return Parcel({"weight": align_dense(linear.weight, metric)})
        truncated = self._truncated.pop(name, None)
        try:
            factors, loss = fit_linear(
                linear.weight,
                rank,
                metric,
                iterations=self.job.recipe.iterations,
                outputs=self._outputs(name) if truncated is None else None,
                fisher=self._fisher.get(name),
                truncated=truncated,
            )
        except ValueError as error:  # of numbers that are not finite
            raise InputError(
                f"{self.job.recipe.model}: {self._full_name(name)}: {error}: its weights, or their activations and "
                f"gradients, go beyond {self.job.recipe.dtype}; {way_out(self.job.recipe.dtype)}"
            ) from None
        dtype = linear.weight.dtype
        return Parcel({"u": factors.u.to(dtype), "v": factors.v.to(dtype)}, loss)

    def _put(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        linear = self._linear(name)
        if "weight" in tensors:
            linear.weight = nn.Parameter(tensors["weight"].contiguous(), requires_grad=False)
        else:
            self.tapped.install(name, _as_module(linear, tensors["u"], tensors["v"]))

    def _linear(self, name: str) -> nn.Linear:
        linear = self.tapped.linear(name)
        assert isinstance(linear, nn.Linear)
        return linear

    def _full_name(self, name: str) -> str:
        return self.job.source.family.linear_name(self.index, name)

    def _rank(self, name: str) -> int | None:
        return self.job.plan.ranks.get(self._full_name(name))

    def _outputs(self, name: str) -> OutputRoot | None:
        return self.job.output_root(self.index, name) if self.job.method.two_sided else None


def _as_module(linear: nn.Linear, u: Tensor, v: Tensor) -> LowRankLinear:
    module = LowRankLinear(linear.in_features, linear.out_features, u.shape[1], bias=False, device="meta")
    # in memory as a file holds them: with other strides some kernels sum in another order
    module.lowrank_u.weight = nn.Parameter(u.contiguous(), requires_grad=False)
    module.lowrank_v.weight = nn.Parameter(v.contiguous(), requires_grad=False)
    module.bias = linear.bias
    return module
