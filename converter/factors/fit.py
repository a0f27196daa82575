"""One linear, its moments and its rank -> its factors: the stages of a method in their order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..methods import Method
from ..statistics.moments import GroupMoments
from .adaptive_alignment import adaptive_alpha
from .compensation import compensate
from .factorization import LowRankFactors, balanced, factor, output_energy, truncation_loss
from .whitening import (
    OutputRoot,
    Regression,
    Whitener,
    activation_scale,
    diagonal_whitener,
    regression,
    whiten,
)

ALIGNMENT_DAMPING = 1e-3


@dataclass(frozen=True)
class FitLoss:
    """Truncation losses of one linear relative to its output energy, on the moment that the fit saw.

    Attributes:
        truncated: after the truncation.
        compensated: after the compensation; equal to `truncated` where there is none.
        held_out_truncated, held_out_compensated: the same on windows that no factor was fitted on, where there are any.
    """

    truncated: float
    compensated: float
    held_out_truncated: float | None = None
    held_out_compensated: float | None = None


@dataclass(frozen=True)
class GroupMetric:
    """What the linears of one input group share: computed once, used for each.

    Attributes:
        method: the row of the table.
        whitener: of the stream that the truncation sees; None for the plain SVD and where each linear has its own.
        evaluation: Sigma the losses are reported on; None where there are no activations.
        compensation: Sigma that the compensation fits; None where the method has none.
        regression: on X', and
        cross_moment: Delta (n, n), where the target is not W X'; or in their place
        update: W Delta (Sigma' + d I)^-1 (m, n) of the group's one linear, where W Delta was gathered.
        held_out: second moment of held-out windows, where there are any.
    """

    method: Method
    whitener: Whitener | None
    evaluation: Tensor | None
    compensation: Tensor | None
    regression: Regression | None
    cross_moment: Tensor | None
    update: Tensor | None
    held_out: Tensor | None


def group_whitener(method: Method, moments: GroupMoments) -> Whitener | None:
    """What the truncation of a group's linears sees of their inputs.

    Args:
        method: says which moment.
        moments: of the group.

    Raises:
        ValueError: a moment is not finite.
    """
    if method.metric == "activation-scale":
        assert moments.mean_abs is not None
        return activation_scale(moments.mean_abs)
    seen = {"dense": moments.dense, "compressed": moments.compressed}.get(method.metric)
    return whiten(seen.mean()) if seen is not None and seen.tokens else None


def group_metric(
    method: Method, moments: GroupMoments, reduction: str, whitener: Whitener | None = None
) -> GroupMetric:
    """Turn moments into what the method needs.

    Args:
        method: which stream is whitened, whether there is compensation and alignment.
        moments: of the group.
        reduction: "moments" or "stack-of-batch", the activations that adaComp fits.
        whitener: of the group, where it is known already.

    Raises:
        ValueError: a moment is not finite.
    """
    compressed = moments.compressed.mean() if moments.compressed.tokens else None
    dense = moments.dense.mean() if moments.dense.tokens else None
    compensation = None
    if method.compensation != "none":
        stacked = reduction == "stack-of-batch" and method.compensation == "adacomp"
        compensation = moments.stacked.mean() if stacked else compressed
    regressed = update = None
    if method.aligned:
        assert compressed is not None
        regressed = regression(compressed, ALIGNMENT_DAMPING)
        if moments.output_cross_moment.tokens:
            update, regressed = regressed.weight(moments.output_cross_moment.mean()), None
    return GroupMetric(
        method=method,
        whitener=whitener or group_whitener(method, moments),
        evaluation=compressed if compressed is not None else dense,
        compensation=compensation,
        regression=regressed,
        cross_moment=moments.cross_moment.mean() if moments.cross_moment.tokens else None,
        update=update,
        held_out=moments.held_out.mean() if moments.held_out.tokens else None,
    )


def truncate(
    weight: Tensor, rank: int, whitener: Whitener | None, *, outputs: OutputRoot | None, fisher: Tensor | None
) -> tuple[LowRankFactors, Tensor]:
    """The truncation that a method begins with.

    Args:
        weight: W (m, n) float64, or the weight whose output is the target.
        rank: r.
        whitener: of its input group.
        outputs: R where the method is two-sided, see `gradient_metric`.
        fisher: Fisher information per input feature (n,) float64 where the truncation sees that.

    Returns:
        See `factor`: the factors, and squared singular values.
    """
    return factor(weight, rank, whitener if fisher is None else diagonal_whitener(fisher.sqrt()), outputs)


def fit_linear(
    weight: Tensor,
    rank: int,
    metric: GroupMetric,
    *,
    iterations: int,
    outputs: OutputRoot | None = None,
    fisher: Tensor | None = None,
    truncated: tuple[LowRankFactors, Tensor] | None = None,
) -> tuple[LowRankFactors, FitLoss | None]:
    """Factor one linear.

    Args:
        weight: W (m, n), any float dtype.
        rank: r.
        metric: of its input group.
        iterations: of adaComp.
        outputs: R where the method is two-sided, see `gradient_metric`.
        fisher: Fisher information per input feature (n,) float64 where the truncation sees that.
        truncated: by `truncate`, where that is done already; for a method that truncates W itself.

    Returns:
        The factors, and their losses where there are activations to measure them on.
    """
    weight = weight.double()
    target = aligned_target(weight, rank, metric)
    if truncated is None:
        seen = target if metric.method.metric == "compressed" else weight
        truncated = truncate(seen, rank, metric.whitener, outputs=outputs, fisher=fisher)
    first, energies = truncated
    factors = first
    if metric.compensation is not None:
        factors = compensate(metric.method.compensation, target, first, metric.compensation, iterations)
    if not bool(torch.isfinite(factors.u).all() and torch.isfinite(factors.v).all()):
        raise ValueError("factors are not finite")
    known = None
    if metric.whitener is not None and metric.whitener.moment is metric.evaluation and not metric.method.two_sided:
        known = float(energies[rank:].sum() / energies.sum().clamp(min=1e-300))
    return balanced(factors), _losses(target, first, factors, metric, known)


def aligned_target(weight: Tensor, rank: int, metric: GroupMetric) -> Tensor:
    """The weight (m, n) whose output on X' is (1 - alpha) W X' + alpha W X, regressed on X'.

    Args:
        weight: W (m, n) float64.
        rank: r, which an adaptive alpha depends on.
        metric: of its input group.
    """
    update, alpha = metric.update, metric.method.alpha
    if update is None:
        if metric.regression is None:
            return weight
        assert metric.cross_moment is not None
        update = metric.regression.weight(weight @ metric.cross_moment)
    if alpha == "adaptive":
        assert metric.whitener is not None
        alpha, _ = adaptive_alpha(weight @ metric.whitener.matrix, update @ metric.whitener.matrix, rank)
    return weight + alpha * update


def align_dense(weight: Tensor, metric: GroupMetric) -> Tensor:
    """The dense weight (m, n), in its dtype, whose output on X' is the target: what a linear that keeps its rank gains.

    Args:
        weight: W (m, n).
        metric: of its input group; without alignment W itself is the answer.
    """
    if metric.regression is None and metric.update is None:
        return weight
    return aligned_target(weight.double(), min(weight.shape), metric).to(weight.dtype)


def _losses(
    target: Tensor, truncated: LowRankFactors, factors: LowRankFactors, metric: GroupMetric, known: float | None
) -> FitLoss | None:
    """Losses of both on what the metric evaluates on; `known` is that of `truncated` where the truncation knows it."""
    if metric.evaluation is None:
        return None

    def losses_on(sigma: Tensor, known: float | None = None) -> tuple[float, float]:
        if known is not None and factors is truncated:
            return known, known
        energy = max(output_energy(target, sigma), 1e-300)
        before = truncation_loss(target, truncated, sigma) / energy if known is None else known
        return before, before if factors is truncated else truncation_loss(target, factors, sigma) / energy

    before, after = losses_on(metric.evaluation, known)
    if metric.held_out is None:
        return FitLoss(before, after)
    return FitLoss(before, after, *losses_on(metric.held_out))
