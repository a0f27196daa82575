"""Importance as measured, against hooks on the whole model."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from lowrank_export.converter.core.errors import UsageError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.model.loading import load_tokenizer
from lowrank_export.converter.statistics.calibration import calibrate
from lowrank_export.exporters.gguf.imatrix import read_imatrix
from lowrank_export.exporters.gguf.importance import export_imatrix

NAMES = {"self_attn.q_proj": "attn_q", "self_attn.o_proj": "attn_output", "mlp.down_proj": "ffn_down"}


@pytest.mark.parametrize("layout", ["two-factor", "pivot", "dense"])
def test_against_hooks(tiny: ModuleType, tmp_path: Path, layout: str) -> None:
    folder, text = tmp_path / "m", tmp_path / "t.txt"
    text.write_text(tiny.TEXT, encoding="utf-8")
    model = (
        tiny.save_dense(folder, "llama")
        if layout == "dense"
        else tiny.save_factored(folder, "llama", rank=20, layout=layout)
    )
    windows = calibrate(str(text), load_tokenizer(folder), windows=3, length=32, held_out=0, seed=0)
    (folder / "calibration.json").write_text(json.dumps(windows.record()), encoding="utf-8")
    measured = export_imatrix(folder, tmp_path / "i.gguf", text=None, force=False, progress=SilentProgress())
    assert measured.tokens == 96
    found = read_imatrix(tmp_path / "i.gguf")
    seen: dict[str, torch.Tensor] = {}
    for path, name in NAMES.items():
        linear = model.get_submodule(f"model.layers.1.{path}")
        parts = {"weight": linear} | {f"{part}.weight": child for part, child in linear.named_children()}
        for part, module in parts.items():
            keep = f"blk.1.{name}.{part}"
            module.register_forward_pre_hook(lambda _, given, keep=keep: seen.update({keep: given[0]}))
    with torch.no_grad():
        model(torch.from_numpy(windows.windows).long())
    assert len(seen) == (3 if layout == "dense" else 9)
    for name, inputs in seen.items():
        expected = inputs.flatten(0, -2).double().square().mean(dim=0)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4)


def test_nothing_is_done_for_a_file_that_exists(tmp_path: Path) -> None:
    (tmp_path / "i.gguf").write_text("there")
    with pytest.raises(UsageError, match="already exists"):
        export_imatrix(tmp_path / "none", tmp_path / "i.gguf", text=None, force=False, progress=SilentProgress())
