"""Experts that hardly any token is sent to: what their moments are made of, and how often they count."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.families.table import family_of
from lowrank_export.converter.model.blocks import BlockSource
from lowrank_export.converter.statistics.few_visits import VISITS, shares_seen
from lowrank_export.converter.statistics.gathering import SIGMA, gather_dense, gather_gradients
from lowrank_export.converter.statistics.store import Statistics

UNLOVED = 3
WINDOWS = torch.randint(0, 320, (12, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> BlockSource:
    """A mixture whose router sends nothing to one expert of its first block."""
    folder = tmp_path_factory.mktemp("m")
    tiny.save_dense(folder, "qwen3_moe", num_experts_per_tok=1)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    router = tensors["model.layers.0.mlp.gate.weight"]
    router[1], router[UNLOVED] = -router[0], 0.0  # one of two opposite logits is above a logit of zero
    save_file(tensors, file, metadata={"format": "pt"})
    reader = CheckpointReader(folder)
    return BlockSource(reader, family_of(reader.config, "here"), torch.device("cpu"), torch.float32)


def test_an_expert_without_tokens_has_the_pooled_moment(blocks: BlockSource, tmp_path: Path) -> None:
    """As many tokens as inputs, evenly spaced; one that sees more is left alone."""
    store = Statistics(tmp_path)
    gather_dense(blocks, [WINDOWS[:6], WINDOWS[6:]], [], store, SilentProgress())
    found = store.read("dense", 0, torch.device("cpu"))
    sent, shown = found[VISITS].T.tolist()
    assert sum(sent) == WINDOWS.numel()
    assert shown == [max(96, count) for count in sent]  # its widest linear has 96 inputs
    assert sent[UNLOVED] == 0
    for expert in range(4):
        sigma = found[f"{SIGMA}expert {expert} in"]
        assert int(torch.linalg.matrix_rank(sigma, hermitian=True, rtol=1e-5)) == 64
    shares = shares_seen(blocks, store, "dense")
    assert shares["model.layers.0.mlp.experts.0.up_proj"] == pytest.approx(shown[0] / WINDOWS.numel())
    assert "model.layers.0.self_attn.q_proj" not in shares


def test_gradients_of_tokens_that_are_lent_are_zero(blocks: BlockSource, tmp_path: Path) -> None:
    store = Statistics(tmp_path)
    gather_gradients(blocks, WINDOWS[:4], 0, store, SilentProgress())
    found = store.read("gradients", 0, torch.device("cpu"))
    sent = found[VISITS][:, 0]
    for expert in range(4):
        gradient = found[f"gradient/mlp.experts.{expert}.down_proj"]
        assert bool(gradient.any()) == bool(sent[expert])
