"""Statistics of the dense model against whole-model autograd."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.model.blocks import BlockSource
from lowrank_export.converter.model.source import open_source
from lowrank_export.converter.statistics.gathering import ROWS, gather_fisher
from lowrank_export.converter.statistics.store import Statistics


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_fisher_rows_are_the_squared_gradients_of_whole_windows(tiny: ModuleType, tmp_path: Path, family: str) -> None:
    model = tiny.save_dense(tmp_path / "dense", family)
    source = open_source(str(tmp_path / "dense"), SilentProgress())
    blocks = BlockSource(source.reader(), source.family, torch.device("cpu"), torch.float32)
    windows = torch.randint(0, 320, (3, 24), generator=torch.Generator().manual_seed(0))
    store = Statistics(tmp_path)
    gather_fisher(blocks, windows, store, SilentProgress())
    for block in range(2):
        found = store.read("fisher", block, torch.device("cpu"))
        assert set(found) == {ROWS + name for name in source.family.linears}
        for name in source.family.linears:
            weight = model.get_parameter(source.family.linear_name(block, name) + ".weight")
            expected = torch.zeros(weight.shape[1])
            for window in windows:
                logits = model(window[None]).logits[0, :-1]
                loss = torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum")
                (gradient,) = torch.autograd.grad(loss, weight)
                expected += gradient.square().mean(dim=0) / 3
            torch.testing.assert_close(found[ROWS + name].float(), expected, rtol=1e-3, atol=1e-6)
