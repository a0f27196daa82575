"""Sensitivities of linears and of blocks against whole-model evaluation, and going on after an interruption."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from lowrank_export.converter.checkpoint.layouts import Layout
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.model.blocks import BlockSource
from lowrank_export.converter.model.source import open_source
from lowrank_export.converter.statistics.gathering import MEAN_ABS, SIGMA, gather_dense
from lowrank_export.converter.statistics.store import Statistics
from lowrank_export.converter.statistics.truncation_sensitivity import Alone, Truncated, truncation_losses

RETENTIONS = (0.3, 0.8)


@pytest.fixture
def dense(tiny: ModuleType, tmp_path: Path) -> tuple[torch.nn.Module, BlockSource, Statistics, torch.Tensor]:
    model = tiny.save_dense(tmp_path / "dense", "qwen2", blocks=3)
    source = open_source(str(tmp_path / "dense"), SilentProgress())
    blocks = BlockSource(source.reader(), source.family, torch.device("cpu"), torch.float32)
    windows = torch.randint(0, 320, (2, 24), generator=torch.Generator().manual_seed(0))
    store = Statistics(tmp_path)
    gather_dense(blocks, [windows], [], store, SilentProgress())
    return model, blocks, store, windows


def test_losses_are_those_of_the_whole_model_with_one_linear_truncated(
    dense: tuple[torch.nn.Module, BlockSource, Statistics, torch.Tensor],
) -> None:
    model, blocks, store, windows = dense
    found, dense_loss = truncation_losses(blocks, windows, Truncated(RETENTIONS, "two-factor"), store, SilentProgress())
    assert dense_loss == pytest.approx(whole_loss(model, windows), rel=1e-5)
    assert len(found) == 3 * len(blocks.family.linears)
    groups = {name: group.name for group in blocks.family.groups for name in group.linears}
    for index, name in ((0, "self_attn.k_proj"), (1, "mlp.down_proj"), (2, "self_attn.o_proj")):
        linear = model.get_submodule(blocks.family.linear_name(index, name))
        weight = linear.weight.detach().clone()
        scale = store.read("dense", index, blocks.device)[MEAN_ABS + groups[name]].sqrt()
        u, s, vt = torch.linalg.svd(weight.double() * scale, full_matrices=False)
        for k, retention in enumerate(RETENTIONS):
            rank = int(retention * weight.numel() / sum(weight.shape))
            with torch.no_grad():
                linear.weight.copy_((u[:, :rank] * s[:rank]) @ vt[:rank] / scale)
                loss = whole_loss(model, windows)
                linear.weight.copy_(weight)
            assert found[blocks.family.linear_name(index, name)][k] == pytest.approx(loss, rel=1e-4)


def test_errors_of_blocks_are_those_of_the_whole_model_with_one_block_truncated(
    dense: tuple[torch.nn.Module, BlockSource, Statistics, torch.Tensor],
) -> None:
    """All its linears at once, each in the metric of its inputs, but for one that stays dense."""
    model, blocks, store, windows = dense
    kept = blocks.family.linear_name(1, "mlp.down_proj")
    truncated = Truncated(RETENTIONS, "two-factor", {kept})
    found, dense_loss = truncation_losses(blocks, windows, truncated, store, SilentProgress(), alone="block-error")
    assert dense_loss == pytest.approx(whole_loss(model, windows), rel=1e-5)
    assert len(found) == 3 * len(blocks.family.linears) - 1 and kept not in found
    for index in range(3):
        weights = {name: p.clone() for name, p in model.named_parameters()}
        names = [blocks.family.linear_name(index, name) for name in blocks.family.linears]
        for k, retention in enumerate(RETENTIONS):
            for group in blocks.family.groups:
                sigma = store.read("dense", index, blocks.device)[SIGMA + group.name]
                values, vectors = torch.linalg.eigh(sigma)
                root = vectors * values.clamp(min=values.max() * 1e-14).sqrt()
                for name in (blocks.family.linear_name(index, inside) for inside in group.linears):
                    if name == kept:
                        continue
                    weight = weights[name + ".weight"].detach()
                    u, s, vt = torch.linalg.svd(weight.double() @ root, full_matrices=False)
                    rank = int(retention * weight.numel() / sum(weight.shape))
                    with torch.no_grad():
                        product = (u[:, :rank] * s[:rank]) @ vt[:rank] @ torch.linalg.inv(root)
                        model.get_submodule(name).weight.copy_(product)
            loss = whole_loss(model, windows)
            assert [found[name][k] for name in names if name != kept] == pytest.approx(
                [loss] * (7 - (kept in names)), 1e-4
            )
        model.load_state_dict(weights, strict=False)


def whole_loss(model: torch.nn.Module, windows: torch.Tensor) -> float:
    with torch.no_grad():
        logits = model(windows).logits[:, :-1].flatten(0, 1)
    return float(torch.nn.functional.cross_entropy(logits, windows[:, 1:].flatten()))


@pytest.mark.parametrize("alone", ["sensitivity", "block-error"])
def test_goes_on_after_the_blocks_that_are_there(
    dense: tuple[torch.nn.Module, BlockSource, Statistics, torch.Tensor], alone: Alone
) -> None:
    _, blocks, store, windows = dense

    def losses(layout: Layout) -> dict[str, list[float]]:
        return truncation_losses(blocks, windows, Truncated(RETENTIONS, layout), store, SilentProgress(), alone=alone)[
            0
        ]

    whole = losses("two-factor")
    marked = store.read(alone, 0, blocks.device)
    for name in blocks.family.linears:
        marked[name][1] = 7.0
    store.save(alone, 0, marked)
    (store.folder / f"{alone}-00002.safetensors").unlink()
    again = losses("two-factor")
    first = {blocks.family.linear_name(0, name) for name in blocks.family.linears}
    assert all(again[name] == ([7.0, 7.0] if name in first else whole[name]) for name in whole)
    other = losses("pivot")
    assert all(other[name] != again[name] for name in again)  # other ranks are measured anew
