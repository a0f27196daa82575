"""The demo model, whole: compressed, exported, and computed with by every runtime as torch computes with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowrank_export.converter.progress import SilentProgress
from lowrank_export.exporters.export import artifact_name
from lowrank_export.runtime_tests.exporting import export
from lowrank_export.runtime_tests.release import Evaluation, load_windows
from lowrank_export.runtime_tests.validate import Settings, validate

FAITHFUL = {"gguf": ("f16", "q8_0"), "onnx": ("int8",)}  # every type is compared with tiny models


@pytest.mark.slow
def test_every_runtime_computes_what_the_factored_model_computes(factored_demo: Path, tmp_path: Path) -> None:
    """All parity gates, in llama.cpp, ONNX Runtime and ONNX Runtime GenAI."""
    artifacts = [
        export(factored_demo, tmp_path / artifact_name(kind, type), format=kind, quantisation=type)
        for kind, types in FAITHFUL.items()
        for type in types
    ]
    report = validate(
        artifacts,
        reference=factored_demo,
        windows=load_windows(Evaluation(windows=4, window_length=256), factored_demo),
        threads=1,
        settings=Settings(speed=False, pieces=2, sample_tokens=16),
        progress=SilentProgress(),
    )
    assert len(report.rows) == 1 + len(FAITHFUL["gguf"]) + 2 * len(FAITHFUL["onnx"])
    assert [(row.label, gate) for row, gate in report.failures] == []
    predicted = {row.path: row.bytes for row in report.rows}
    assert all(artifact.bytes == predicted[str(artifact.path)] for artifact in artifacts)
