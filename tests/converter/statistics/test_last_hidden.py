"""The dense model's last hidden states, block by block: those of transformers."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

import lowrank_export
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.distributed.workers import ALONE
from lowrank_export.converter.families.table import family_of
from lowrank_export.converter.model.activations import Keep, OnDisk, in_memory
from lowrank_export.converter.model.blocks import BlockSource
from lowrank_export.converter.statistics.last_hidden import last_hidden_states


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_are_those_of_the_whole_model(tiny: ModuleType, tmp_path: Path, family: str, on_disk: bool) -> None:
    tiny.save_dense(tmp_path / "dense", family)
    reader = CheckpointReader(tmp_path / "dense")
    blocks = BlockSource(reader, family_of(reader.config, "dense"), torch.device("cpu"), torch.float32)
    windows = torch.randint(0, 320, (3, 17), dtype=torch.int32)
    keep: Keep = OnDisk(tmp_path) if on_disk else in_memory
    found = last_hidden_states(blocks, windows, keep, ALONE, SilentProgress())
    model = lowrank_export.load(tmp_path / "dense")
    head = blocks.head().weight
    with torch.no_grad():
        for states, tokens in zip(found, windows, strict=True):
            whole = model(tokens[None].long())
            assert states.shape == (1, 17, head.shape[1])
            torch.testing.assert_close(states @ head.T, whole.logits, rtol=1e-4, atol=1e-5)
