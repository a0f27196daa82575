"""The demo model, whole: compressed, exported, and computed with by every runtime as torch computes with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.exporters.export import export
from lowrank_export.exporters.registry import requested
from lowrank_export.runtime_tests.evaluation import Evaluation, load_windows
from lowrank_export.runtime_tests.settings import Settings
from lowrank_export.runtime_tests.validate import validate

FAITHFUL = {"gguf": ("f32", "f16", "bf16", "q8_0"), "onnx": ("fp32", "int8")}  # narrower types lose by design
FEW = {"gguf": ("f16", "q8_0"), "onnx": ("int8",)}  # every type is compared with tiny models too


@pytest.mark.parametrize(
    ("types", "count", "length"),
    [
        pytest.param(FEW, 4, 256, marks=pytest.mark.slow, id="few"),
        pytest.param(FAITHFUL, 8, 512, marks=pytest.mark.reproduce, id="all"),
    ],
)
def test_every_runtime_computes_what_the_factored_model_computes(
    factored_demo: Path, tmp_path: Path, types: dict[str, tuple[str, ...]], count: int, length: int
) -> None:
    """All parity gates, in llama.cpp, ONNX Runtime and ONNX Runtime GenAI."""
    artifacts = [
        export(factored_demo, tmp_path / request.name, request)
        for request in (requested(kind, type) for kind in types for type in types[kind])
    ]
    report = validate(
        artifacts,
        reference=factored_demo,
        windows=load_windows(Evaluation(windows=count, window_length=length), factored_demo),
        settings=Settings(threads=1, speed=False, pieces=2, sample_tokens=16),
        progress=SilentProgress(),
    )
    assert len(report.rows) == 1 + len(types["gguf"]) + 2 * len(types["onnx"])
    assert [(row.label, gate) for row, gate in report.failures] == []
    for row in report.rows:
        if row.parity is not None and row.quantization in ("f32", "fp32"):
            assert row.parity.mean_kld < 1e-10
    predicted = {row.path: row.bytes for row in report.rows}
    assert all(artifact.bytes == predicted[str(artifact.path)] for artifact in artifacts)
