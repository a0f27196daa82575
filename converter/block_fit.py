"""The linears of one block: each process of the job fits its share, all install all of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from .architectures import InputGroup
from .block_forward import TappedBlock
from .errors import InputError
from .factorisation import LowRankFactors
from .fit import FitLoss, GroupMetric, align_dense, fit_linear, group_metric, group_whitener, truncate
from .lowrank_linear import LowRankLinear
from .moments import GroupMoments
from .planning import Job
from .progress import Progress
from .whitening import Whitener
from .workers import Parcel


@dataclass(frozen=True)
class _Said:
    """What is known of a fitted linear beside its tensors.

    Attributes:
        loss: where there are activations to measure it on.
        whitened_by: the rung of the ladder, where it is not the usual one.
    """

    loss: FitLoss | None = None
    whitened_by: str = ""


class BlockFit:
    """Replaces the linears of a block by factors, group by group.

    Args:
        job: method, ranks, statistics and the processes.
        index: of the block.
        tapped: the block.
        counted: full names of the linears that the user does not exclude.
        progress: told about fallbacks.
    """

    def __init__(self, job: Job, index: int, tapped: TappedBlock, counted: Collection[str], progress: Progress) -> None:
        self.job, self.index, self.tapped, self.counted, self.progress = job, index, tapped, counted, progress
        self._gradients, self._fisher = job.gradients(index), job.fisher(index)
        self._whiteners: dict[str, Whitener | None] = {}
        self._truncated: dict[str, LowRankFactors] = {}
        # where the truncation does not see the compressed stream, all of the block's can be made at once
        self._at_once = job.workers.count > 1 and job.method.metric != "compressed"

    def truncate_ahead(self, moments: Mapping[str, GroupMoments]) -> None:
        """Truncate this process's linears of the whole block, where that need not wait for the stream."""
        if not self._at_once:
            return
        for group in self.job.source.family.groups:
            mine = [name for name in self._mine(group, self._block_owners) if self._rank(name) is not None]
            if not mine:
                continue
            with self._named(group):
                whitener = self._whiteners[group.name] = group_whitener(self.job.method, moments[group.name])
            for name in mine:
                rank = self._rank(name)
                assert rank is not None
                self._truncated[name] = truncate(
                    self._linear(name).weight.double(),
                    rank,
                    whitener,
                    gradient=self._gradients.get(name),
                    fisher=self._fisher.get(name),
                )

    def install(self, groups: Sequence[InputGroup], moments: Mapping[str, GroupMoments]) -> dict[str, FitLoss]:
        """Fit the linears of groups whose moments are complete and put what comes out in their place.

        Returns:
            Full linear name -> its losses, for those that were factored.
        """
        workers = self.job.workers
        owners = self._block_owners if self._at_once else self._owners(groups)
        parcels: dict[str, Parcel] = {}
        for group in groups:
            mine = self._mine(group, owners)
            metric = self._metric(group, moments[group.name]) if mine else None
            for name in mine:
                assert metric is not None
                parcels[name] = self._fit(name, metric)
        losses = {}
        for group in groups:
            fallback = ""
            for name in group.linears:
                if name not in owners:
                    continue
                parcel = workers.sent(parcels.pop(name, None), owners[name], self.job.blocks.device)
                self._put(name, parcel.tensors)
                if parcel.facts.loss is not None:
                    losses[self._full_name(name)] = parcel.facts.loss
                fallback = fallback or parcel.facts.whitened_by
            if fallback:
                self.progress.note(f"block {self.index}, {group.name}: singular second moment, whitened by {fallback}")
        return losses

    @cached_property
    def _block_owners(self) -> dict[str, int]:
        return self._owners(self.job.source.family.groups)

    def _owners(self, groups: Sequence[InputGroup]) -> dict[str, int]:
        """Linear -> the process that fits it, for those that are fitted at all."""
        costs = {}
        for name in [name for group in groups for name in group.linears]:
            linear = self._linear(name)
            if self._rank(name) is not None or (self._full_name(name) in self.counted and self.job.method.aligned):
                sides = linear.in_features, linear.out_features
                costs[name] = float(sides[0] * sides[1] * min(sides))
        return self.job.workers.owners(costs)

    def _mine(self, group: InputGroup, owners: Mapping[str, int]) -> list[str]:
        return [name for name in group.linears if owners.get(name) == self.job.workers.index]

    def _metric(self, group: InputGroup, moments: GroupMoments) -> GroupMetric:
        """What the group's linears are fitted with."""
        known, reduction = self._whiteners.get(group.name), self.job.recipe.calibration_reduction
        with self._named(group):
            return group_metric(self.job.method, moments, reduction, known)

    @contextmanager
    def _named(self, group: InputGroup) -> Iterator[None]:
        """Name the group whose moments are not finite."""
        try:
            yield
        except ValueError:
            raise InputError(
                f"{self.job.recipe.model}: activations at {group.name!r} of block {self.index} hold NaN or Inf in "
                f"{self.job.recipe.dtype}; use --dtype float32, or check the model"
            ) from None

    def _fit(self, name: str, metric: GroupMetric) -> Parcel:
        """Factors of a linear, or its weight where it keeps its rank and answers for the error before it."""
        linear, rank = self._linear(name), self._rank(name)
        if rank is None:
            return Parcel({"weight": align_dense(linear.weight, metric)}, _Said())
        factors, loss = fit_linear(
            linear.weight,
            rank,
            metric,
            iterations=self.job.recipe.iterations,
            gradient=self._gradients.get(name),
            fisher=self._fisher.get(name),
            truncated=self._truncated.pop(name, None),
        )
        how = "" if metric.whitener is None else metric.whitener.how
        dtype = linear.weight.dtype
        return Parcel(
            {"u": factors.u.to(dtype), "v": factors.v.to(dtype)},
            _Said(loss, "" if how in ("cholesky", "diagonal") else how),
        )

    def _put(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        linear = self._linear(name)
        if "weight" in tensors:
            linear.weight = nn.Parameter(tensors["weight"], requires_grad=False)
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


def _as_module(linear: nn.Linear, u: Tensor, v: Tensor) -> LowRankLinear:
    module = LowRankLinear(linear.in_features, linear.out_features, u.shape[1], bias=False, device="meta")
    module.lowrank_u.weight = nn.Parameter(u, requires_grad=False)
    module.lowrank_v.weight = nn.Parameter(v, requires_grad=False)
    module.bias = linear.bias
    return module
