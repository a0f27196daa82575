"""What the head's rounding is weighed with: the mean square of its inputs, and what that gains."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.statistics.recorded_windows import recorded_windows
from lowrank_export.exporters.artifact import TensorRecord
from lowrank_export.exporters.gguf.head_importance import WINDOWS, head_importance
from lowrank_export.exporters.gguf.rounding_choice import Rounding
from lowrank_export.exporters.rounding.calibrated import open_calibrated


def records(**types: str) -> list[TensorRecord]:
    return [TensorRecord(f"{name}.weight", (320, 64), type, 1) for name, type in types.items()]


@pytest.mark.parametrize("tied", [True, False])
def test_mean_square_of_the_last_hidden_states(tiny: ModuleType, tmp_path: Path, tied: bool) -> None:
    model = tiny.save_dense(tmp_path / "model", "llama", tied=tied)
    (tmp_path / "text.txt").write_text(tiny.TEXT * 40, encoding="utf-8")
    text = str(tmp_path / "text.txt")
    reader = CheckpointReader(tmp_path / "model")
    windows = torch.from_numpy(recorded_windows(tmp_path / "model", text))
    windows = windows[:WINDOWS, : reader.config["max_position_embeddings"]].long()
    with torch.no_grad():
        states = model.model(windows).last_hidden_state
    expected = states.double().square().mean(dim=(0, 1)).numpy()
    parts = {"token_embd": "q5_0"} if tied else {"token_embd": "q4_0", "output": "q5_0"}
    assert Rounding("aware").weighed_head(records(**parts)) == ("token_embd.weight" if tied else "output.weight")
    found = head_importance(*open_calibrated(reader, text, "cpu", SilentProgress()), SilentProgress())
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("rounding", "types"),
    [
        (Rounding("plain"), {"token_embd": "q5_0"}),
        (Rounding("aware"), {"token_embd": "f16"}),
        (Rounding("aware"), {"token_embd": "q5_0", "output": "f32"}),
    ],
)
def test_nothing_is_run_for_nothing(rounding: Rounding, types: dict[str, str]) -> None:
    assert rounding.weighed_head(records(**types)) is None
