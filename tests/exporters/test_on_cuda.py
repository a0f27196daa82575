"""Aware rounding and importance matrices on the stand-in for a GPU: the CPU's bytes."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lowrank_export.converter.checkpoint.layouts import Layout
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import ResourceError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.model.loading import load_tokenizer
from lowrank_export.converter.statistics.calibration import calibrate
from lowrank_export.exporters.export import export
from lowrank_export.exporters.gguf.importance import export_imatrix
from lowrank_export.exporters.gguf.rounding_choice import Rounding
from lowrank_export.exporters.onnx.weights.encoded import gptq_matrices
from lowrank_export.exporters.onnx.weights.types import OnnxOptions
from lowrank_export.exporters.registry import requested

MERGED = "model.layers.0.mlp.up_proj"


@pytest.fixture
def checkpoint(tiny: ModuleType, tmp_path: Path) -> Any:
    """Makes a factored model of 32-wide rows that records its calibration text."""

    def make(layout: Layout = "two-factor") -> Path:
        text = tmp_path / "notes.txt"
        text.write_text(tiny.TEXT, encoding="utf-8")
        tiny.save_factored(tmp_path / layout, "llama", rank=24 if layout == "pivot" else 32, layout=layout)
        drawn = calibrate(str(text), load_tokenizer(tmp_path / layout), windows=3, length=32, held_out=0, seed=0)
        (tmp_path / layout / "calibration.json").write_text(json.dumps(drawn.record()), encoding="utf-8")
        return tmp_path / layout

    return make


@pytest.mark.parametrize("type", ["q4_0", "iq4_nl"])
def test_gguf_gives_the_cpus_bytes(checkpoint: Any, tmp_path: Path, gpu: Any, type: str) -> None:
    made = []
    for device in ("cpu", "cuda"):
        rounding = Rounding("aware", device=device)
        request = requested("gguf", type, rounding=rounding)
        made.append(export(checkpoint(), tmp_path / f"{device}.gguf", request).path)
        assert (gpu.memory.peak > 0) == (device == "cuda")
    assert made[0].read_bytes() == made[1].read_bytes()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("layout", ["two-factor", "pivot"])
def test_onnx_gives_the_cpus_codes(checkpoint: Any, layout: Layout) -> None:
    """Factors, pivot rows and a linear that is multiplied out."""
    reader = CheckpointReader(checkpoint(layout))
    found = [
        gptq_matrices(reader, "int4-mix", OnnxOptions(rounding="aware", device=device), [MERGED], SilentProgress())
        for device in ("cpu", "cuda")
    ]
    assert found[0].keys() == found[1].keys() and MERGED + ".weight" in found[0]
    for name, matrix in found[0].items():
        for part in ("qweight", "scales"):
            assert torch.equal(getattr(matrix, part), getattr(found[1][name], part))


@pytest.mark.usefixtures("gpu")
def test_an_importance_matrix_has_the_cpus_bytes(checkpoint: Any, tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        export_imatrix(
            checkpoint(), tmp_path / device, text=None, device=device, force=False, progress=SilentProgress()
        )
    assert (tmp_path / "cpu").read_bytes() == (tmp_path / "cuda").read_bytes()


def test_running_out_of_memory_is_one_line(checkpoint: Any, cuda_stand_in: ModuleType) -> None:
    reader = CheckpointReader(checkpoint())
    asked = OnnxOptions(rounding="aware", device="cuda")
    with (
        cuda_stand_in.StandIn(total=10**5),
        pytest.raises(
            ResourceError, match="cuda: out of memory; calibrate on fewer or shorter windows, or use --device"
        ),
    ):
        gptq_matrices(reader, "int4", asked, [], SilentProgress())
