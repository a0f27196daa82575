"""Refinement: the gradient is that of the stated loss, the best epoch is kept, and models come closer."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lowrank_export
from lowrank_export.converter.core.errors import UsageError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.core.recipe import Recipe
from lowrank_export.converter.model.head import Head
from lowrank_export.converter.pipeline import compress
from lowrank_export.converter.statistics.calibration import Calibration, hold_out
from lowrank_export.converter.training.descent import Schedule
from lowrank_export.converter.training.refinement import (
    Examples,
    Teacher,
    _head_divergence,
    refine_block,
    refine_model,
)


def test_windows_that_tell_when_to_stop_are_fitted_by_nothing() -> None:
    given = Calibration(np.arange(64, dtype=np.int32).reshape(32, 2), np.empty((0, 2), np.int32), "x.npy", 0)
    split = hold_out(given)
    assert len(split.windows) == 30 and len(split.held_out) == 2 and hold_out(split) is split
    assert np.array_equal(np.concatenate([split.windows, split.held_out]), given.windows)
    with pytest.raises(UsageError, match="--refine needs at least two"):
        hold_out(Calibration(given.windows[:1], given.held_out, "x.npy", 0))


def test_block_moves_towards_its_target_in_the_metric() -> None:
    torch.manual_seed(0)
    block, wanted = nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 6)
    bias = block.bias.clone()
    inputs = list(torch.randn(8, 16, 6))
    targets = [wanted(x).detach() for x in inputs]
    root = torch.diag(torch.tensor([100.0, 1, 1, 1, 1, 0.01]))
    done = refine_block(
        block,
        lambda b, x: b(x),
        Examples(inputs, targets, 6),
        root=root,
        frozen=[block.bias],
        schedule=Schedule(30, 0.05, 0),
    )
    assert done.after < 0.6 * done.before
    assert torch.equal(block.bias, bias)
    assert not any(parameter.requires_grad for parameter in block.parameters())


@pytest.mark.parametrize("cap", [None, 2.0])
def test_head_gradient_is_autograd_of_the_divergence(tiny: ModuleType, cap: float | None) -> None:
    student, teacher = tiny.model("llama", seed=1), tiny.model("llama", seed=2)
    tokens = torch.randint(0, 320, (2, 9))
    with torch.no_grad():
        wanted = teacher.model(tokens).last_hidden_state
    found = student.model(tokens).last_hidden_state.detach().requires_grad_(True)
    head = Head(nn.Identity(), student.lm_head.weight.detach(), cap)
    capped = (lambda x: x) if cap is None else (lambda x: cap * torch.tanh(x / cap))
    log_q, log_p = (capped(nn.functional.linear(x, head.weight)).log_softmax(-1) for x in (found, wanted))
    expected = nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean()
    expected.backward()
    loss, gradient = _head_divergence(head, found.detach(), wanted)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
    torch.testing.assert_close(gradient, found.grad, rtol=1e-3, atol=1e-6)


def test_model_comes_closer_to_its_teacher(tiny: ModuleType) -> None:
    student, teacher = tiny.model("qwen2", seed=1), tiny.model("qwen2", seed=1)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "mlp" in name:
                parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter))
    trained = [parameter for name, parameter in student.named_parameters() if "mlp" in name]
    before = {name: p.detach().clone() for name, p in student.named_parameters() if "mlp" not in name}
    windows = torch.randint(0, 320, (6, 24), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = [teacher.model(w[None]).last_hidden_state for w in windows]
    head = Head(teacher.model.norm, teacher.lm_head.weight.detach())
    done = refine_model(student, Teacher(head, windows, wanted, 4), trained=trained, schedule=Schedule(6, 0.02, 0))
    assert done.after < 0.9 * done.before
    assert all(torch.equal(p, before[name]) for name, p in student.named_parameters() if name in before)
    assert not student.training and all(parameter.grad is None for parameter in student.parameters())


def test_nothing_is_dropped(tiny: ModuleType) -> None:
    """A student that is its teacher is as far from it as their arithmetic, in a family with dropout."""
    student, teacher = tiny.model("opt", seed=1), tiny.model("opt", seed=1)
    assert student.config.dropout == 0.1
    windows = torch.randint(0, 320, (3, 24), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = [teacher.model(w[None]).last_hidden_state for w in windows]
    trained = [parameter for name, parameter in student.named_parameters() if "fc1" in name]
    head = Head(nn.Identity(), teacher.lm_head.weight.detach())
    done = refine_model(student, Teacher(head, windows, wanted, 2), trained=trained, schedule=Schedule(1, 1e-6, 0))
    assert abs(done.before) < 1e-6


@pytest.fixture(scope="module")
def dense(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    tiny.save_dense(folder / "m", "qwen2")
    (folder / "text.txt").write_text(tiny.TEXT, encoding="utf-8")
    return folder


def recipe(dense: Path, **options: Any) -> Recipe:
    return Recipe(
        model=str(dense / "m"),
        calibration=str(dense / "text.txt"),
        windows=8,
        window_length=32,
        rank_multiple=4,
        retention=0.5,
        **options,
    )


def error(dense: Path, made: Path) -> float:
    """Mean squared difference of the logits on other text of the same kind."""
    tokens = torch.tensor(lowrank_export_tokens(dense))[None]
    with torch.no_grad():
        wanted, found = (lowrank_export.load(path)(tokens).logits for path in (dense / "m", made))
    return float((wanted - found).square().mean())


def lowrank_export_tokens(dense: Path) -> list[int]:
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(dense / "m")((dense / "text.txt").read_text())["input_ids"]
    return list(ids[500:700])


class Notes(SilentProgress):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


@pytest.mark.parametrize("method", ["adasvd", "loss-aware", "svd"])
def test_refined_blocks_lose_less_on_held_out_windows(dense: Path, tmp_path: Path, method: str) -> None:
    made = []
    for layout in ("two-factor", "pivot"):
        notes = Notes()
        options = {"method": method, "layout": layout, "refine_epochs": 10, "refine_rate": 0.003}
        compress(recipe(dense, refine="block", **options), tmp_path / layout, progress=notes)
        losses = [
            tuple(map(float, re.findall(r"held-out (\S+) -> (\S+) in", line)[0]))
            for line in notes.lines
            if "->" in line
        ]
        assert len(losses) == 2 and all(after <= before for before, after in losses)
        assert losses[0][1] < 0.995 * losses[0][0]  # the first block's inputs are the dense model's own
        made.append(error(dense, tmp_path / layout))
    assert made[0] != made[1]


def test_refined_model_is_closer_still_and_leaves_nothing_behind(dense: Path, tmp_path: Path) -> None:
    options = {
        "method": "loss-aware",
        "keep_dense": ("*.o_proj",),
        "refine_epochs": 8,
        "refine_model_epochs": 8,
        "refine_model_rate": 0.01,
    }
    compress(recipe(dense, refine="block", **options), tmp_path / "block")
    compress(recipe(dense, refine="model", layout="pivot", **options), tmp_path / "model")
    assert error(dense, tmp_path / "model") < error(dense, tmp_path / "block") * 1.05
    assert not [file for file in (tmp_path / "model").iterdir() if file.name.startswith(".")]
    name = "model.layers.1.self_attn.o_proj.weight"
    kept = [lowrank_export.load(path).state_dict()[name] for path in (dense / "m", tmp_path / "model")]
    assert torch.equal(*kept)
