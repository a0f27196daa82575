"""The pass that stops at every input group, against hooks on the whole model; replaced linears are gone on through."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.families.table import family_of
from lowrank_export.converter.model.blocks import BlockSource
from lowrank_export.converter.statistics.input_moments import input_moments

TOKENS = torch.randint(0, 320, (5, 24), generator=torch.Generator().manual_seed(0))


def source(folder: Path) -> BlockSource:
    reader = CheckpointReader(folder)
    return BlockSource(reader, family_of(reader.config, "here"), torch.device("cpu"), torch.float32)


def hooked(model: Any) -> dict[str, torch.Tensor]:
    """Linear -> second moment of its inputs, from one forward of the whole model."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            x = given[0].flatten(0, -2).double()
            found[name] = x.T @ x / len(x)

        return hook

    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_pre_hook(keep(name))
    with torch.no_grad():
        model(TOKENS)
    return found


@pytest.mark.parametrize("layout", ["two-factor", "pivot", "dense"])
def test_against_hooks(tiny: ModuleType, tmp_path: Path, layout: str) -> None:
    if layout == "dense":
        model = tiny.save_dense(tmp_path, "qwen2")
    else:
        model = tiny.save_factored(tmp_path, "qwen2", rank=20, layout=layout)
    expected, blocks = hooked(model), source(tmp_path)
    seen = set()
    for stop in input_moments(blocks, [TOKENS[:2], TOKENS[2:]], SilentProgress(), "test"):
        for linear in stop.group.linears:
            name = blocks.family.linear_name(stop.block, linear)
            torch.testing.assert_close(stop.moment, expected[name], rtol=1e-4, atol=1e-5)
            seen.add(name)
    assert seen == expected.keys()


def test_the_pass_goes_on_through_what_was_installed(tiny: ModuleType, tmp_path: Path) -> None:
    model, blocks = tiny.save_dense(tmp_path, "llama"), source(tmp_path)
    generator = torch.Generator().manual_seed(1)
    found = {}
    for stop in input_moments(blocks, [TOKENS], SilentProgress(), "test"):
        for linear in stop.group.linears:
            name = blocks.family.linear_name(stop.block, linear)
            found[name] = stop.moment
            replaced = nn.Linear(*reversed(stop.tapped.linear(linear).weight.shape), bias=False)
            replaced.weight.data = torch.randn(replaced.weight.shape, generator=generator) * 0.1
            stop.tapped.install(linear, replaced.requires_grad_(False))
            model.get_submodule(name).weight.data = replaced.weight.data
    expected = hooked(model)
    for name, moment in found.items():
        torch.testing.assert_close(moment, expected[name], rtol=1e-4, atol=1e-5)


def test_rank_of_a_linear_that_is_none(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_factored(tmp_path, "llama", rank=20)
    reader = CheckpointReader(tmp_path)
    reader.ranks["model.layers.0.mlp"] = 20
    with pytest.raises(InputError, match=r"names a linear that the model lacks: 'model\.layers\.0\.mlp'"):
        BlockSource(reader, family_of(reader.config, "here"), torch.device("cpu"), torch.float32)
