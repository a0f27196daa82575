"""The main job from the command line: whole, repeated, resumed and interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from lowrank_export.cli import app
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.exporters.llamacpp.runtime import ensure_runtime
from lowrank_export.runtime_tests import release


@pytest.fixture
def job(models: Path, tiny: ModuleType, tmp_path: Path) -> list[str]:
    """The main job on the tiny model, into tmp_path/out."""
    return list(tiny.job_options(models / "dense", tmp_path / "out", models / "text.txt"))


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_whole_job(job: list[str], tmp_path: Path) -> None:
    ensure_runtime(SilentProgress())
    both = [*job, "--format", "gguf", "--format", "onnx"]
    result = run(*both, "--json")
    assert result.exit_code == 0, result.stderr
    out = tmp_path / "out"
    assert sorted(entry.name for entry in out.iterdir()) == [
        "checkpoint",
        "junit.xml",
        "model-q8_0.gguf",
        "model-q8_0.gguf.md",
        "onnx-int8",
        "report.html",
        "report.json",
        "report.md",
    ]
    assert "license: " in (out / "model-q8_0.gguf.md").read_text() and (out / "onnx-int8" / "README.md").is_file()
    report = json.loads((out / "report.json").read_text(), parse_constant=pytest.fail)
    assert json.loads(result.stdout) == report
    rows = {(row["model"], row["backend"]) for row in report["rows"]}
    backends = ("torch", "llama.cpp", "onnxruntime", "onnxruntime-genai")
    assert rows == {(model, backend) for model in ("dense", "factored") for backend in backends}
    assert report["provenance"]["recipe"]["retention"] == 0.8 and report["windows"]["count"] == 2

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = run(*both)
    assert again.exit_code == 2 and again.stderr.startswith("error: ") and "--force" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

    (out / "notes.txt").write_text("mine")
    forced = run(*job, "--format", "onnx", "--force")
    assert forced.exit_code == 0 and forced.stdout == ""
    assert sorted(entry.name for entry in out.iterdir()) == [
        "checkpoint",
        "junit.xml",
        "notes.txt",
        "onnx-int8",
        "report.html",
        "report.json",
        "report.md",
    ]


def test_job_in_a_mix(job: list[str], tmp_path: Path) -> None:
    """Rows of 4 and of 64 fit no block of 256: what stands in is in the report."""
    ensure_runtime(SilentProgress())
    result = run(*job, "--gguf-type", "q4_k_m", "--gguf-head-type", "q8_0", "--json")
    assert result.exit_code == 0, result.stderr
    rows = {row["model"]: row for row in json.loads(result.stdout)["rows"] if row["backend"] == "llama.cpp"}
    assert {row["quantisation"] for row in rows.values()} == {"q4_k_m"}
    assert any("stored as f16" in line and "lowrank_u" in line for line in rows["factored"]["fallbacks"])
    assert not any("stored as f16" in line or "token_embd" in line for line in rows["dense"]["fallbacks"])
    refused = run(*job, "--gguf-head-type", "q4_k_m", "--force")
    assert refused.exit_code == 2 and "unknown GGUF type 'q4_k_m'" in refused.stderr


def test_job_with_aware_rounding(job: list[str], tmp_path: Path) -> None:
    """Both the factored and the dense file are rounded so."""
    from lowrank_export.converter.storage.gguf_header import read_header
    from lowrank_export.exporters.gguf.mixes import exported_as

    ensure_runtime(SilentProgress())
    result = run(*job, "--gguf-type", "q4_0", "--gguf-rounding", "aware")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("rounding, aware of what follows") == 2
    made = exported_as(read_header(tmp_path / "out" / "model-q4_0.gguf"))
    assert made is not None and str(made) == "q4_0 rounding=aware"


@pytest.mark.parametrize("command", [[], ["compare"], ["sweep", "--format", "onnx"]])
def test_a_model_that_cannot_be_measured_within_the_limit(job: list[str], tmp_path: Path, command: list[str]) -> None:
    options = [word for word in job if word not in ("--no-speed", "--gate") and not word.startswith("quality.")]
    refused = run(*command, *options, "--max-memory", "1MB")
    assert refused.exit_code == 5, refused.stderr
    assert refused.stderr.startswith("error: --max-memory 1 MB: to measure takes the dense model in memory, ")
    assert "use compress and export" in refused.stderr and refused.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert run(*command, *options, "--max-memory", "much").exit_code == 2


def test_windows_are_looked_at_before_the_work(job: list[str], tmp_path: Path) -> None:
    refused = run(*job, "--format", "onnx", "--evaluation-length", "513")
    assert refused.exit_code == 3 and "evaluation windows of 513 tokens, but the model holds 512" in refused.stderr
    assert "compressing" not in refused.stderr and not (tmp_path / "out").exists()


def test_failed_gate_is_exit_code_4(job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowrank_export.runtime_tests.report.report import Report

    monkeypatch.setattr(Report, "passed", property(lambda self: False))
    result = run(*job, "--format", "onnx", "--onnx-type", "fp32")
    assert result.exit_code == 4 and (tmp_path / "out" / "report.json").is_file()


def test_interrupted_job_goes_on(job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    onnx = [*job, "--format", "onnx"]
    with monkeypatch.context() as patch:
        patch.setattr(release, "validate", interrupted)
        stopped = run(*onnx)
    assert stopped.exit_code == 130 and "the same command goes on" in stopped.stderr.splitlines()[-1]
    kept = tmp_path / "out" / "checkpoint"
    assert kept.is_dir() and not (tmp_path / "out" / "report.json").exists()
    other = run(*onnx, "--retention", "0.7")
    assert other.exit_code == 2 and "unfinished job of another recipe" in other.stderr
    with monkeypatch.context() as patch:
        patch.setattr("lowrank_export.converter.model.source.Source.fingerprint", lambda _: "other weights")
        other = run(*onnx)
        assert other.exit_code == 2 and "unfinished job of another" in other.stderr
    with monkeypatch.context() as patch:
        patch.setattr(release, "compress", interrupted)
        patch.setattr("lowrank_export.exporters.onnx.builder.genai_builder.build", interrupted)
        patch.setattr(release, "validate", lambda *_, **__: pytest.fail("went on too far"))
        shutil.rmtree(tmp_path / "out" / "onnx-int8")
        stopped = run(*onnx)
        assert stopped.exit_code == 130
        assert not [path for path in (tmp_path / "out").rglob("*") if "partial" in path.name]
    with monkeypatch.context() as patch:
        patch.setattr(release, "compress", interrupted)
        done = run(*onnx)
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "out" / "report.json").is_file() and not (tmp_path / "out" / "dense").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_nothing_half_written(
    models: Path, tmp_path: Path, forked: Callable[..., Any], number: signal.Signals
) -> None:
    command = ["compress", "--model", str(models / "deep"), "--out", str(tmp_path / "out")]
    command += ["--calibration", str(models / "text.txt"), "--windows", "4", "--window-length", "64"]
    command += ["--rank-multiple", "4"]
    (log := tmp_path / "log").touch()
    process = forked(["lowrank_export", *command], log)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.unfinished/block-00001*")):
        assert process.is_alive() and time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(60)
    stderr = log.read_text()
    assert (process.exitcode, (tmp_path / "log.out").read_text()) == (130, "")
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("error: interrupted; nothing half-written was left")
    assert {entry.name for entry in tmp_path.iterdir()} == {".out.unfinished", "log", "log.out"}
    again = run(*command)
    assert again.exit_code == 0 and "going on with block" in again.stderr, again.stderr
    assert {entry.name for entry in tmp_path.iterdir()} == {"out", "log", "log.out"}
