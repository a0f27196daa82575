"""Recipe + statistics -> rank plan: what is decided before any work is done."""

from __future__ import annotations

import math
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

from ..allocation.adacr import adacr, normalize
from ..allocation.block_error import block_error
from ..allocation.candidate_cut import TENTHS, candidate_cut, measured_retentions, stable_rank_scores
from ..allocation.plan import LinearPlan, LinearShape, RankPlan
from ..allocation.rank_multiple import DEFAULT_MULTIPLE, choose_rank_multiple
from ..allocation.rounding import round_ranks
from ..allocation.stacks import members_of, stacked, summed, unstacked
from ..allocation.threshold import threshold
from ..allocation.type_loss import type_loss
from ..allocation.uniform import uniform
from ..core.errors import UsageError
from ..core.nearest import nearest
from ..core.progress import Progress
from ..core.recipe import Recipe
from ..distributed.workers import Workers
from ..families.family import Family
from ..machine.device import DTYPES
from ..methods import METHODS, Method
from ..model.blocks import BlockSource
from ..model.source import Source
from ..statistics.calibration import Calibration
from ..statistics.few_visits import few_tokens, shares_seen
from ..statistics.sensitivity import block_similarities, loss_energies, stable_ranks
from ..statistics.store import Statistics
from ..statistics.truncation_sensitivity import Alone, Truncated, truncation_losses


def method_of(recipe: Recipe) -> Method:
    """The row of the method table, with what the recipe changes of it."""
    method = METHODS[recipe.method]
    two_sided = method.two_sided if recipe.truncation is None else recipe.truncation == "two-sided"
    alpha = method.alpha if recipe.alpha is None else recipe.alpha
    return replace(method, two_sided=two_sided, alpha=alpha, allocation=recipe.allocation or method.allocation)


def statistics_kinds(recipe: Recipe) -> tuple[str, ...]:
    """Kinds of statistics that a recipe reads, each after those it is made from."""
    refining = ("gradients",) if recipe.refine != "none" else ()
    return tuple(dict.fromkeys([*method_of(recipe).statistics, *refining]))


def rank_multiple_for(recipe: Recipe, source: Source, row_multiple: int) -> int:
    """The recipe's rank multiple, or where it leaves the choice what `choose_rank_multiple` says.

    Args:
        recipe: as asked.
        source: the dense model.
        row_multiple: what rows of the target's storage types are multiples of.
    """
    if recipe.rank_multiple is not None:
        return recipe.rank_multiple
    blocks = BlockSource(source.reader(), source.family, torch.device("cpu"), DTYPES[recipe.dtype])
    found = blocks.linear_shapes()
    kept = kept_dense(recipe.keep_dense, list(found), source.family)
    shapes = [LinearShape(name, 0, *shape, recipe.layout) for name, shape in found.items() if name not in kept]
    return choose_rank_multiple(shapes, recipe.retention, row_multiple)


def allocate(
    recipe: Recipe,
    method: Method,
    blocks: BlockSource,
    calibration: Calibration | None,
    store: Statistics,
    progress: Progress,
    workers: Workers,
) -> RankPlan:
    """Ranks of every linear.

    Args:
        recipe, method: what was asked; see `method_of`.
        blocks: the dense model.
        calibration: its windows; None for a method that needs none.
        store: statistics of the kinds that the method reads.
        progress: receives stages.
        workers: the processes that share the job.

    Raises:
        UsageError: a target that cannot be met, or a pattern that fits no linear.
    """
    per_block = len(blocks.family.linears)
    shapes = [
        LinearShape(name, index // per_block, *shape, recipe.layout)
        for index, (name, shape) in enumerate(blocks.linear_shapes().items())
    ]
    keep_dense = kept_dense(recipe.keep_dense, [shape.name for shape in shapes], blocks.family)
    if recipe.choice:
        return chosen_plan(recipe, shapes, keep_dense)
    stack = blocks.family.stack
    stacks, kept = stacked(shapes, stack), frozenset(map(stack, keep_dense))
    counted = [shape for shape in stacks if shape.name not in kept]
    wanted, importance = _wanted(recipe, method, blocks, calibration, store, progress, workers, counted)
    retentions = dict(zip([shape.name for shape in counted], wanted, strict=True))
    plan = workers.broadcast_object(  # one plan, even where machines round differently
        lambda: round_ranks(
            stacks,
            [retentions.get(shape.name, 1.0) for shape in stacks],
            target=recipe.retention,
            rank_multiple=recipe.rank_multiple or DEFAULT_MULTIPLE,
            keep_dense=kept,
            tolerance=method.tolerance,
            importance=importance,
        )
    )
    few = few_tokens(blocks, store, method.statistics)
    return replace(unstacked(plan, shapes, stack), few_tokens=few)


def check_settled(recipe: Recipe) -> None:
    """Refuse a size that nothing has been chosen for, which is a matter of the format it is met in, and a vocabulary
    that is still to be cut.

    Raises:
        UsageError: it is one.
    """
    check_whole_vocabulary(recipe)
    if recipe.sized and not recipe.choice:
        key = "max_bytes" if recipe.max_bytes is not None else "bits_per_weight"
        raise UsageError(f"{key}: is met by a file, not by a checkpoint; use the main command, or plan")


def check_whole_vocabulary(recipe: Recipe) -> None:
    """Refuse a recipe whose model has to lose tokens first.

    Raises:
        UsageError: it is one.
    """
    if recipe.keep_vocabulary:
        raise UsageError("keep_vocabulary: is a stage of the main command; or use trim, and what it makes as --model")


def chosen_plan(recipe: Recipe, shapes: list[LinearShape], keep_dense: frozenset[str]) -> RankPlan:
    """The ranks that a recipe's choice names.

    Args:
        recipe: with a choice.
        shapes: every linear of the blocks.
        keep_dense: those that the user excludes.

    Raises:
        UsageError: a linear is not among the choice, or cannot have its rank.
    """
    forms, linears = recipe.forms, []
    for shape in shapes:
        form = forms.get(shape.name)
        if form is None:
            raise UsageError(f"choice: says nothing of {shape.name}; it was made for another model")
        if form.rank is not None and form.rank > min(shape.out_features, shape.in_features):
            raise UsageError(f"choice: {shape.name} is {shape.out_features} x {shape.in_features}: no rank {form.rank}")
        if form.rank is not None and shape.name in keep_dense:
            raise UsageError(f"choice: {shape.name} has rank {form.rank}, and is to be kept dense")
        linears.append(LinearPlan(shape, form.rank, compressed=shape.name not in keep_dense))
    plan = RankPlan(tuple(linears), 1.0, recipe.rank_multiple or DEFAULT_MULTIPLE)
    return replace(plan, target=plan.retention)


def _wanted(
    recipe: Recipe,
    method: Method,
    blocks: BlockSource,
    calibration: Calibration | None,
    store: Statistics,
    progress: Progress,
    workers: Workers,
    shapes: list[LinearShape],
) -> tuple[list[float], tuple[float, ...]]:
    """Wanted retention per linear or stack of linears, and the importance of blocks where the allocation has one."""
    target, allocation = recipe.retention, method.allocation
    if allocation == "uniform":
        return uniform(shapes, target), ()
    if allocation == "stable-rank":
        ranks = stable_ranks(blocks, progress, workers)
        members = members_of(ranks, blocks.family.stack)
        means = [sum(ranks[name] for name in members[shape.name]) / shape.copies for shape in shapes]
        scores = [stable_rank_scores(mean, TENTHS) for mean in means]
        return candidate_cut(shapes, scores, TENTHS, target), ()
    assert calibration is not None
    if allocation == "adacr":
        importance = normalize(block_similarities(blocks, calibration, recipe.similarity, progress, workers))
        return adacr(shapes, importance, target, recipe.min_retention), importance
    if allocation == "threshold":
        energies = _energies(blocks, store, "gradients", progress, workers)
        return threshold(shapes, [energies[shape.name] for shape in shapes], target), ()
    if allocation == "type-loss":
        energies = _energies(blocks, store, "dense", progress, workers)
        losses = [_summed_loss(shape, energies[shape.name], target, calibration) for shape in shapes]
        types = [blocks.family.linear_type(shape.name) for shape in shapes]
        return type_loss(shapes, types, losses, target), ()
    alone: Alone = "sensitivity" if allocation == "perplexity" else "block-error"
    measured, dense = losses_alone(recipe, alone, blocks, calibration, store, progress, workers)
    if alone == "block-error":
        errors = {shape.block: [*measured[shape.name], dense] for shape in shapes}
        return block_error(shapes, errors, (*TENTHS, 1.0), target), ()
    return candidate_cut(shapes, [measured[s.name] for s in shapes], measured_retentions(target), target), ()


def _energies(
    blocks: BlockSource, store: Statistics, kind: Literal["dense", "gradients"], progress: Progress, workers: Workers
) -> dict[str, Tensor]:
    """See `loss_energies`; those of a stack are added up, each expert's as often as it sees a token."""
    energies = loss_energies(blocks, store, kind, progress, workers)
    return summed(energies, shares_seen(blocks, store, kind), blocks.family.stack)


def losses_alone(
    recipe: Recipe,
    alone: Alone,
    blocks: BlockSource,
    calibration: Calibration,
    store: Statistics,
    progress: Progress,
    workers: Workers,
) -> tuple[dict[str, list[float]], float]:
    """See `truncation_losses`: of the candidates, linears and stacks, that a recipe's allocation chooses among."""
    windows = torch.from_numpy(calibration.windows[: recipe.sensitivity_windows])
    together = alone == "block-error"
    retentions = TENTHS if together else measured_retentions(recipe.retention)
    names = list(blocks.linear_shapes())
    kept = kept_dense(recipe.keep_dense, names, blocks.family) if together else frozenset[str]()
    truncated = Truncated(retentions, recipe.layout, kept)
    losses, dense = truncation_losses(blocks, windows, truncated, store, progress, workers, alone=alone)
    return {blocks.family.stack(name): values for name, values in losses.items()}, dense


def _summed_loss(shape: LinearShape, energies: Tensor, retention: float, calibration: Calibration) -> float:
    """||(W - U V^T) X||_F over all calibration tokens of the truncation to a retention."""
    rank = max(1, int(shape.rank_for(retention)))
    return math.sqrt(calibration.windows.size * float(energies[rank:].sum()))


def kept_dense(patterns: tuple[str, ...], names: list[str], family: Family) -> frozenset[str]:
    """Linears that `--keep-dense` names, whole or by their end. Those of a stack are kept together.

    Raises:
        UsageError: a pattern that fits none of `names`.
    """
    excluded: set[str] = set()
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"*{pattern}")]
        if not matched:
            raise UsageError(f"--keep-dense {pattern!r}: matches no linear{nearest(pattern, names[:7])}")
        excluded.update(map(family.stack, matched))
    return frozenset(name for name in names if family.stack(name) in excluded)
