"""One block tried before the work: what its forward and its widest fit really take is held against the forecast."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..core.recipe import Recipe
from ..factors.fit import fit_linear, group_metric
from ..factors.whitening import OutputRoot, gradient_metric
from ..methods import Method
from ..model.activations import in_memory
from ..model.block_forward import StoppedForward, TappedBlock
from ..model.blocks import BlockSource
from ..statistics.moments import GroupMoments, Moment
from .model_shape import WindowSizes, model_shape


@torch.no_grad()
def trial_of_a_block(recipe: Recipe, method: Method, blocks: BlockSource, windows: WindowSizes, chunk: Tensor) -> None:
    """The forward of one chunk through the first block, and the fit of the largest linear of its widest group.

    The moments are made regular, so that they are whitened as those of many windows are.
    """
    block = blocks.block(0)
    stream = in_memory(blocks.embed([chunk]))
    tapped, forward = TappedBlock(block, blocks.family), StoppedForward(partial(blocks.run, block, stream[0]))
    shape = model_shape(blocks)
    widest = max(shape.inputs, key=shape.inputs.__getitem__)
    moments = GroupMoments()
    needs_compressed = method.needs_compressed_stream or recipe.refine != "none"
    for group in blocks.family.groups:
        y = forward.next_input()
        if group.name != widest:
            continue
        moments.mean_abs = y.abs().mean(dim=0).double()
        for moment, wanted in (
            (moments.dense, method.needs_dense_moments),
            (moments.compressed, needs_compressed),
            (moments.held_out, windows.held_out > 0 and (method.needs_dense_moments or needs_compressed)),
        ):
            if wanted:
                moment.add(y)
                _make_regular(moment)
        if method.aligned:
            weight = tapped.linear(group.linears[0]).weight
            assert isinstance(weight, Tensor)
            if len(group.linears) == 1 and weight.shape[0] < weight.shape[1]:
                moments.output_cross_moment.add_cross(blocks.project(weight, y), y)
            else:
                moments.cross_moment.add_cross(y, y)
        names = group.linears
    forward.finish()
    del stream, forward, y
    metric = group_metric(method, moments, "moments")
    del moments
    name = max(names, key=shape.outputs.__getitem__)
    linear = tapped.linear(name)
    assert isinstance(linear, torch.nn.Linear)
    out, features = linear.weight.shape
    gradient = torch.eye(out, dtype=torch.float64, device=blocks.device) if method.two_sided else None
    outputs = None if gradient is None else OutputRoot(gradient_metric(gradient).root)
    fisher = torch.ones(features, dtype=torch.float64, device=blocks.device) if method.needs_fisher else None
    del gradient
    rank = max(1, int(recipe.retention * out * features / (out + features)))
    fit_linear(linear.weight, rank, metric, iterations=recipe.iterations, outputs=outputs, fisher=fisher)


def _make_regular(moment: Moment) -> None:
    assert moment.total is not None
    moment.total.diagonal().add_(1.0)
