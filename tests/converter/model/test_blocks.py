"""A model run block by block computes what transformers computes, in every family."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.families.table import compressed, family_of
from lowrank_export.converter.model.blocks import BlockSource

OPTIONS: dict[str, dict[str, Any]] = {
    "smollm3": {"blocks": 4},
    "cohere": {"use_qk_norm": True},
    "gemma": {"hidden_size": 80},
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.7,
        "logits_scaling": 5.0,
        "residual_multiplier": 0.3,
    },
}


def opened(folder: Path) -> BlockSource:
    reader = CheckpointReader(folder)
    return BlockSource(reader, family_of(reader.config, "here"), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("family", compressed())
def test_embedding_blocks_and_head_make_the_logits(tmp_path: Path, tiny: ModuleType, family: str) -> None:
    model = tiny.save_dense(tmp_path, family, tied=family != "phi3", **OPTIONS.get(family, {}))
    tokens = torch.randint(0, tiny.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(1))
    blocks = opened(tmp_path)
    with torch.no_grad():
        (x,) = blocks.embed([tokens])
        for index in range(blocks.block_count):
            x = blocks.run(blocks.block(index), x)
        head = blocks.head()
        torch.testing.assert_close(head.logits(head.norm(x)), model(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_windows_longer_than_the_attention(tmp_path: Path, tiny: ModuleType, family: str) -> None:
    """Masks and rotary embeddings are those of the whole model for every length, one after another."""
    model = tiny.save_dense(tmp_path, family, blocks=3, sliding_window=8)
    blocks = opened(tmp_path)
    for length in (5, 30, 17):
        tokens = torch.randint(0, tiny.VOCABULARY, (2, length), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            *states, _ = model(tokens, output_hidden_states=True).hidden_states  # the last is behind the norm
            (x,) = blocks.embed([tokens])
            for index, expected in enumerate(states):
                torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
                x = blocks.run(blocks.block(index), x)


def test_every_linear_of_a_family_is_there(tmp_path: Path, tiny: ModuleType) -> None:
    for family in compressed():
        tiny.save_dense(tmp_path / family, family, blocks=1)
        blocks = opened(tmp_path / family)
        assert len(blocks.linear_shapes()) == len(blocks.family.linears)
