"""Sweeps: the front and the choice on made-up rows; a whole sweep of a tiny model, repeated and extended."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lowrank_export.cli import app
from lowrank_export.converter.core.errors import GateError, InputError, UsageError
from lowrank_export.exporters.artifact import to_document
from lowrank_export.runtime_tests.metrics.parity import Parity
from lowrank_export.runtime_tests.metrics.perplexity import Perplexity
from lowrank_export.runtime_tests.studies import grid as module
from lowrank_export.runtime_tests.studies.sweep_results import Limits, SweepRow, pareto, read_rows, recommend
from lowrank_export.runtime_tests.timing.speed import Rate, Speed

PARITY = Parity(0.1, 0.01, 0.1, 2.0, 9.0, 0.7, 0.8, -0.01, 0.1, 0.9, 4088)


def row(method: str, size: float, kld: float, speed: float | None = 50.0, kind: str = "q8_0") -> SweepRow:
    """An export of `size` MB."""
    rate = None if speed is None else Rate(speed, speed, speed)
    return SweepRow(
        method=method,
        retention=1.0 if method == "dense" else 0.8,
        kept=0.8,
        format="gguf",
        quantization=kind,
        backend="llama.cpp",
        bytes=int(size * 1e6),
        bits_per_weight=8.5,
        perplexity=Perplexity(15 + 10 * kld, 0.5, 4088),
        quality=replace(PARITY, mean_kld=kld),
        speed=None if rate is None else Speed(rate, rate, 256, 32, 3, 1),
        compress_seconds=0 if method == "dense" else 10,
    )


ROWS = (
    row("dense", 145, 0.005),
    row("dense", 95, 0.05, kind="q4_k_m"),
    row("loss-aware", 120, 0.3, 60),
    row("loss-aware", 80, 0.4, 70, "q4_k_m"),
    row("adasvd", 80, 0.9, 70, "q4_k_m"),
)


def test_front() -> None:
    assert pareto(ROWS) == (ROWS[3], ROWS[1], ROWS[0])
    assert pareto((row("dense", 1, float("nan")),)) == () == pareto(())


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=12))
def test_nobody_on_the_front_is_beaten_and_everybody_else_is(values: list[tuple[int, int]]) -> None:
    rows = [row("m", size, kld / 10) for size, kld in values]
    front = pareto(rows)
    for one in rows:
        beaten = any(
            other.bytes <= one.bytes and other.kld <= one.kld and (other.bytes, other.kld) != (one.bytes, one.kld)
            for other in rows
        )
        assert beaten != ((one.bytes, one.kld) in {(best.bytes, best.kld) for best in front})


@pytest.mark.parametrize(
    ("limits", "index", "reasons"),
    [
        (Limits(max_bytes=100e6), 1, ["3 of 5 exports", "closest to the dense model: 95.0 MB, KLD 0.05"]),
        (Limits(max_bytes=90e6), 3, ["next: adasvd", "plain quantization alone: none keeps the limits"]),
        (Limits(max_kld=0.5), 3, ["smallest: 80.0 MB", "plain quantization alone: dense, gguf q4_k_m"]),
        (Limits(max_kld=0.5, min_speed=80), None, ["70.0 tokens per second, at least 80"]),
        (Limits(min_speed=55), 2, ["3 of 5 exports"]),
        (Limits(max_bytes=10e6), None, ["none of 5 exports", "MB, at most 10.0"]),
    ],
)
def test_choice_and_its_reasons(limits: Limits, index: int | None, reasons: list[str]) -> None:
    if index is None:
        with pytest.raises(GateError) as error:
            recommend(ROWS, limits)
        said = str(error.value)
    else:
        choice = recommend(ROWS, limits)
        assert choice.row == ROWS[index]
        said = "\n".join(choice.reasons)
    for reason in reasons:
        assert reason in said


def test_calls_that_say_too_little(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--max-bytes"):
        recommend(ROWS, Limits())
    with pytest.raises(UsageError, match="--no-speed"):
        recommend([row("dense", 1, 0.1, None)], Limits(min_speed=1))
    with pytest.raises(InputError, match="no such file"):
        read_rows(tmp_path / "sweep.json")
    for text in ("{", "[]", '{"schema_version": 1}', '{"schema_version": 9, "rows": []}'):
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(InputError, match=r"sweep\.json"):
            read_rows(tmp_path / "sweep.json")
    document = {"schema_version": 1, "rows": [{**to_document(one), "on_front": True} for one in ROWS]}
    (tmp_path / "sweep.json").write_text(json.dumps(document))
    assert read_rows(tmp_path / "sweep.json") == ROWS


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_whole_sweep(tiny: ModuleType, child_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods in ONNX; a second call makes nothing again, a further retention only its own rows."""
    tiny.save_dense(tmp_path / "dense", "llama")
    (tmp_path / "text.txt").write_text(tiny.TEXT, encoding="utf-8")
    options = {"model": tmp_path / "dense", "calibration": tmp_path / "text.txt", "evaluate": tmp_path / "text.txt"}
    options |= {"windows": 4, "window-length": 32, "rank-multiple": 4, "evaluation-windows": 2, "threads": 1}
    options |= {"evaluation-length": 32, "out": tmp_path / "out", "format": "onnx", "methods": "svd,svd-llm"}
    words = ["sweep", "--onnx-type", "fp32", "--onnx-type", "int8"]
    words += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    calls: list[str] = []
    monkeypatch.setattr(module, "run_child", lambda *words: calls.append(words[0][0]) or child_here(*words))
    first = run(*words, "--retention", "0.8", "--json")
    assert first.exit_code == 0, first.stderr
    document = json.loads(first.stdout)
    assert document == json.loads((tmp_path / "out" / "sweep.json").read_text())
    rows = read_rows(tmp_path / "out" / "sweep.json")
    assert [(one.method, one.quantization) for one in rows] == [
        (method, kind) for method in ("dense", "svd", "svd-llm") for kind in ("fp32", "int8")
    ]
    exact, rounded = rows[:2]
    assert exact.kld < 1e-9 < rounded.kld < rows[2].kld and rounded.bytes < exact.bytes
    assert all(one.speed is not None and one.backend == "onnxruntime" for one in rows)
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["rows", "sweep.html", "sweep.json"]
    page = (tmp_path / "out" / "sweep.html").read_text(encoding="utf-8")
    assert "plain quantization" in page and page.count("<svg") == 3

    calls.clear()
    again = run(*words, "--retention", "0.8", "--json")
    assert json.loads(again.stdout)["rows"] == document["rows"] and calls == []
    more = run(*words, "--retention", "0.8,0.6", "--no-speed")
    assert more.exit_code == 2 and "speed" in more.stderr  # rows of another evaluation are not mixed in
    picked = run("recommend", tmp_path / "out", "--max-bytes", f"{rows[3].bytes}", "--json")
    assert picked.exit_code == 0, picked.stderr
    assert json.loads(picked.stdout)["row"]["bytes"] <= rows[3].bytes
    assert run("recommend", tmp_path / "out", "--max-bytes", "1kB").exit_code == 4
    assert "expected a size" in run("recommend", tmp_path / "out", "--max-bytes", "small").stderr


def test_sizes(tiny: ModuleType, child_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside plain quantization and one retention, in both formats what is chosen for a size."""
    tiny.save_dense(tmp_path / "dense", "llama", hidden_size=64, intermediate_size=128)
    monkeypatch.setattr(module, "run_child", child_here)
    (tmp_path / "text.txt").write_text(tiny.TEXT, encoding="utf-8")
    options = {"model": tmp_path / "dense", "calibration": tmp_path / "text.txt", "evaluate": tmp_path / "text.txt"}
    options |= {"windows": 4, "window-length": 32, "gradient-windows": 2, "evaluation-windows": 2, "threads": 1}
    options |= {"evaluation-length": 32, "out": tmp_path / "out", "format": "gguf", "methods": "svd"}
    options |= {"rank-multiple": 4, "retention": 0.8, "sizes": "130KB"}
    words = ["--format", "onnx", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]
    made = run("sweep", "--no-speed", *words, "--json")
    assert made.exit_code == 0, made.stderr
    rows = read_rows(tmp_path / "out" / "sweep.json")
    dense = ["dense, onnx int8", "dense, gguf q8_0", "dense, aware, onnx int8", "dense, aware, gguf q8_0"]
    labels = [*dense, "svd 0.8, onnx int8", "svd 0.8, gguf q8_0", "size 0.13 MB, onnx", "size 0.13 MB, gguf"]
    assert [one.label for one in rows] == labels
    assert rows[3].bytes == rows[1].bytes and rows[3].quality != rows[1].quality
    assert all(row.bytes <= 130_000 and row.quantization == "budget" for row in rows[-2:])
    assert "--sizes 130000" in (tmp_path / "out" / "sweep.html").read_text(encoding="utf-8")
    assert run("sweep", *words[:-1], "12 parsecs").exit_code == 2
