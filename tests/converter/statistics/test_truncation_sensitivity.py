"""ASVD's sensitivities against whole-model evaluation, and going on after an interruption."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from lowrank_export.converter.model.blocks import BlockSource
from lowrank_export.converter.model.source import open_source
from lowrank_export.converter.progress import SilentProgress
from lowrank_export.converter.statistics.gathering import MEAN_ABS, gather_dense
from lowrank_export.converter.statistics.store import Statistics
from lowrank_export.converter.statistics.truncation_sensitivity import truncation_losses

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
    found = truncation_losses(blocks, windows, RETENTIONS, "two-factor", store, SilentProgress())
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
                logits = model(windows).logits[:, :-1].flatten(0, 1)
                linear.weight.copy_(weight)
            loss = torch.nn.functional.cross_entropy(logits, windows[:, 1:].flatten())
            assert found[blocks.family.linear_name(index, name)][k] == pytest.approx(float(loss), rel=1e-4)


def test_goes_on_after_the_blocks_that_are_there(
    dense: tuple[torch.nn.Module, BlockSource, Statistics, torch.Tensor],
) -> None:
    _, blocks, store, windows = dense
    whole = truncation_losses(blocks, windows, RETENTIONS, "two-factor", store, SilentProgress())
    marked = store.read("sensitivity", 0, blocks.device)
    for name in blocks.family.linears:
        marked[name][1] = 7.0
    store.save("sensitivity", 0, marked)
    (store.folder / "sensitivity-00002.safetensors").unlink()
    again = truncation_losses(blocks, windows, RETENTIONS, "two-factor", store, SilentProgress())
    first = {blocks.family.linear_name(0, name) for name in blocks.family.linears}
    assert all(again[name] == ([7.0, 7.0] if name in first else whole[name]) for name in whole)
    other = truncation_losses(blocks, windows, RETENTIONS, "pivot", store, SilentProgress())
    assert all(other[name] != again[name] for name in again)  # other ranks are measured anew
