"""Whole validations of tiny models."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lowrank_export.cli import app
from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.exporters.gguf.mixes import Quantization
from lowrank_export.exporters.llamacpp.runtime import find_runtime
from lowrank_export.runtime_tests import measured_rows
from lowrank_export.runtime_tests.backends.formats import TORCH
from lowrank_export.runtime_tests.gates.gate_file import GateSettings
from lowrank_export.runtime_tests.metrics.corpora import evaluation_windows
from lowrank_export.runtime_tests.metrics.footprint import Footprint, measure_footprint
from lowrank_export.runtime_tests.metrics.windows import Windows
from lowrank_export.runtime_tests.settings import Settings
from lowrank_export.runtime_tests.timing import timing
from lowrank_export.runtime_tests.validate import DenseModel, validate

QUICK = Settings(speed=False, sample_tokens=4)
TIMED = Settings(prompt_tokens=(8,), decode_tokens=2, repeats=1, sample_tokens=4)
LOOSE = GateSettings({"quality.mean_kld": None, "quality.perplexity_increase": None})  # random models have no quality


@pytest.fixture
def windows(tiny: ModuleType) -> Windows:
    return evaluation_windows(tiny.tokenizer(), tiny.TEXT, windows=3, length=24)


@pytest.fixture(scope="module")
def models(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with "dense", "factored" (rank 24) and "full" (full rank) of the same weights."""
    folder = tmp_path_factory.mktemp("models")
    tiny.save_dense(folder / "dense", "llama")
    tiny.save_factored(folder / "factored", "llama", rank=24)
    tiny.save_factored(folder / "full", "llama")
    return folder


FOOTPRINTS: list[Footprint] = []


@pytest.fixture(autouse=True)
def _one_process_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that imports PyTorch takes seconds: the first one's footprint stands for all."""

    def measured(path: Path, name: str, **options: Any) -> Footprint:
        if name != TORCH:
            return measure_footprint(path, name, **options)
        if not FOOTPRINTS:
            FOOTPRINTS.append(measure_footprint(path, name, **options))
        return FOOTPRINTS[0]

    monkeypatch.setattr(timing, "measure_footprint", measured)


def _rows(report: Any) -> dict[tuple[str, str, str], Any]:
    return {(row.model, row.backend, Path(row.path).name): row for row in report.rows}


def test_checkpoints_against_each_other(models: Path, windows: Windows, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    report = validate(
        [models / "full"],
        reference=models / "full",
        dense=DenseModel(models / "dense", [models / "dense"]),
        windows=windows,
        settings=TIMED,
        scratch=scratch,
    ).with_provenance({"seed": 7})
    assert list(scratch.iterdir()) == []
    assert [row.model for row in report.rows] == ["dense", "dense", "factored", "factored"]
    reference, candidate = report.rows[2], report.rows[3]
    assert reference.parity is None and reference.quality is not None and reference.quality.mean_kld < 1e-8
    assert candidate.parity.mean_kld == 0 and candidate.parity.same_top == 1
    assert candidate.perplexity == reference.perplexity
    assert all(row.perplexity.tokens == 3 * 23 for row in report.rows)
    assert all(row.speed is not None and row.writing is not None for row in report.rows)
    assert candidate.dense_speed is not None and candidate.footprint.peak_bytes > candidate.footprint.start_bytes > 0
    assert candidate.tokenizer.differing == () and candidate.bandwidth_share > 0
    assert report.passed, report.failures
    assert {gate.name for gate in candidate.gates} > {"artifact.runs", "artifact.tokenizer", "quality.mean_kld"}
    assert "quality.mean_kld" not in {gate.name for gate in report.rows[1].gates}
    assert {item.linear for item in report.ranks} > {"q_proj", "down_proj"} and report.ranks[0].rank == 64
    document = json.dumps(report.to_json(), allow_nan=False)
    assert '"seed": 7' in document and report.windows["predicted_tokens"] == 69


def test_another_model_fails_the_gates(models: Path, windows: Windows) -> None:
    report = validate([models / "factored"], reference=models / "full", windows=windows, settings=QUICK)
    assert not report.passed
    assert {gate.name for _, gate in report.failures} == {"parity.mean_kld", "parity.perplexity_change"}
    assert report.rows[1].quality is None


def test_nan_weights_name_the_backend(tiny: ModuleType, models: Path, windows: Windows, tmp_path: Path) -> None:
    model = tiny.model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    tiny.tokenizer().save_pretrained(tmp_path / "nan")
    with pytest.raises(InputError, match="torch: NaN logits in window 0"):
        validate([], reference=tmp_path / "nan", windows=windows, settings=QUICK)
    report = validate([tmp_path / "nan", models / "full"], reference=models / "full", windows=windows, settings=QUICK)
    ((row, gate),) = report.failures
    assert (row.path, gate.name) == (str(tmp_path / "nan"), "artifact.runs")
    assert "torch: NaN logits in window 0" in gate.words
    assert {row.path for row in report.rows if row.parity} == {str(models / "full")}  # the other one was measured


def test_everything_is_closed_and_removed_on_errors(
    models: Path, windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, opened, closed = tmp_path / "scratch", [], []
    scratch.mkdir()
    real = measured_rows.open_backend

    def watched(path: Path, name: str, **options: Any) -> Any:
        backend = real(path, name, **options)
        opened.append(path.name)
        close = backend.close
        monkeypatch.setattr(backend, "close", lambda: (closed.append(path.name), close()), raising=False)
        if path.name == "factored":
            monkeypatch.setattr(
                backend, "window_logits", lambda tokens: np.full((len(tokens), 320), np.inf, np.float32)
            )
        return backend

    monkeypatch.setattr(measured_rows, "open_backend", watched)
    with pytest.raises(InputError, match="infinite"):
        validate([], reference=models / "factored", dense=DenseModel(models / "full"), windows=windows, scratch=scratch)
    assert opened == closed == ["full", "factored"]
    report = validate(
        [models / "full", models / "factored", models / "full"],
        reference=models / "full",
        windows=windows,
        settings=QUICK,
        scratch=scratch,
    )
    assert [(Path(row.path).name, "infinite" in gate.detail) for row, gate in report.failures] == [("factored", True)]
    assert opened == closed == ["full", "factored", "full", "full", "factored", "full"]
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w + 320, "wrong tokenizer"),
        (lambda w: w[:, :1], "at least one window of two tokens"),
        (lambda w: np.zeros((1, 513), np.int32), "the model holds 512"),
    ],
)
def test_unusable_windows(models: Path, windows: Windows, change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        validate([], reference=models / "full", windows=Windows.whole(change(windows.tokens)), settings=QUICK)


def test_dense_artifacts_need_the_dense_model(models: Path) -> None:
    given = ["validate", models / "full", "--reference", models / "full", "--dense-artifact", models / "dense"]
    result = CliRunner().invoke(app, list(map(str, given)))
    assert result.exit_code == InputError.exit_code and "without the dense model" in result.stderr


def test_onnx_in_both_runtimes(models: Path, windows: Windows, tmp_path: Path) -> None:
    from lowrank_export.exporters.onnx.export import export_onnx

    silent = SilentProgress()
    factored = [
        export_onnx(models / "factored", tmp_path / f"factored-{kind}", quantization=kind, progress=silent)
        for kind in ("fp32", "int8")
    ]
    dense = export_onnx(models / "dense", tmp_path / "dense-fp32", quantization="fp32", progress=silent)
    report = validate(
        factored,
        reference=models / "factored",
        dense=DenseModel(models / "dense", [dense.path]),
        windows=windows,
        settings=TIMED,
        gates=LOOSE,
    )
    rows = _rows(report)
    assert report.passed, report.failures
    for backend in ("onnxruntime", "onnxruntime-genai"):
        exact, rounded = rows["factored", backend, "factored-fp32"], rows["factored", backend, "factored-int8"]
        assert exact.parity.mean_kld < 1e-9 < rounded.parity.mean_kld
        ours, torchs = exact.writing, rows["factored", "torch", "factored"].writing
        assert (ours.greedy, ours.sampled) == (torchs.greedy, torchs.sampled)
        np.testing.assert_equal(asdict(ours.sampled_degeneration), asdict(torchs.sampled_degeneration))
        assert exact.dense_speed is not None and rounded.dense_speed is not None
        assert rows["dense", backend, "dense-fp32"].speed is not None
    assert len(report.rows) == 2 + 2 + 4


@pytest.mark.skipif(find_runtime() is None, reason="the llama.cpp runtime has not been built")
def test_gguf_in_llama_cpp(models: Path, windows: Windows, tmp_path: Path) -> None:
    from lowrank_export.exporters.gguf.writer import export_gguf

    artifacts = [
        export_gguf(
            models / "factored",
            tmp_path / f"{kind}.gguf",
            Quantization(kind),
            progress=SilentProgress(),
        )
        for kind in ("f32", "f16", "q8_0")
    ]
    dense = models / "dense"
    report = validate(
        artifacts, reference=models / "factored", dense=DenseModel(dense), windows=windows, settings=TIMED, gates=LOOSE
    )
    rows = _rows(report)
    assert report.passed, report.failures
    klds = [rows["factored", "llama.cpp", f"{kind}.gguf"].parity.mean_kld for kind in ("f32", "f16", "q8_0")]
    assert klds == sorted(klds) and klds[0] < 1e-7


@pytest.mark.skipif(find_runtime() is None, reason="the llama.cpp runtime is not built")
def test_adapter_with_its_base(models: Path, windows: Windows, tmp_path: Path) -> None:
    """With residuals the pair is held to the dense model, without to the factored one; both files count."""
    from lowrank_export.exporters.export import export
    from lowrank_export.exporters.registry import requested

    asked = requested("gguf", "q8_0", layout="adapter")
    zero = export(models / "factored", tmp_path / "zero.gguf", asked)
    asked = requested("gguf", "q8_0", layout="adapter", dense=str(models / "dense"), residual="q5_1")
    whole = export(models / "factored", tmp_path / "whole.gguf", asked)
    for artifact, reference, type in ((zero, "factored", "q8_0"), (whole, "dense", "q5_1")):
        report = validate([artifact.path], reference=models / reference, windows=windows, settings=QUICK)
        row = report.rows[-1]
        assert report.passed, report.failures
        assert (row.layout, row.quantization, row.bytes) == ("adapter", type, artifact.bytes)
    report = validate([zero.path], reference=models / "dense", windows=windows, settings=QUICK)
    assert not report.passed
