"""The report as JSON and as a table."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from lowrank_export.converter.core.errors import LowRankError
from lowrank_export.runtime_tests.gates.gates import gate
from lowrank_export.runtime_tests.generation.generation import Sample
from lowrank_export.runtime_tests.generation.writing import Writing
from lowrank_export.runtime_tests.metrics.degeneration import degeneration
from lowrank_export.runtime_tests.metrics.parity import AtPosition, Parity
from lowrank_export.runtime_tests.metrics.perplexity import Perplexity
from lowrank_export.runtime_tests.report.report import SCHEMA_VERSION, Report, Row, write_report
from lowrank_export.runtime_tests.report.report_table import render
from lowrank_export.runtime_tests.timing.speed import Rate, Speed

PARITY = Parity(1.2e-5, 1e-6, 1e-6, 1e-4, 1e-3, 0.9987, 0.95, 0.0, 1e-4, 1e-3, 100, (AtPosition(1.0, 1e-5, 1.0, 100),))
SPEED = Speed(Rate(1500.0, 1400.0, 1600.0), Rate(55.5, 50.0, 60.0), 256, 32, 3, 1)
TEXT = Sample("Once", " upon a time", (1, 2))
DEGENERATION = degeneration([TEXT.tokens])
DENSE_ROW = Row(
    model="dense",
    backend="onnxruntime-genai",
    path="dense",
    sha256="0" * 64,
    format="onnx",
    quantization="int8",
    layout="dense",
    bytes=143_000_000,
    parameters=134_515_008,
    bytes_per_token=143_000_000,
    perplexity=Perplexity(21.99, 0.71, 4088),
    parity=PARITY,
    writing=Writing((TEXT,), (replace(TEXT, seed=0),), DEGENERATION, DEGENERATION),
    speeds=(SPEED,),
    gates=(gate("parity.mean_kld", 1.2e-5, 0.02),),
)
FACTORED_ROW = replace(
    DENSE_ROW, model="factored", path="factored", quality=replace(PARITY, mean_kld=0.512), dense_speeds=(SPEED,)
)
FAILED_ROW = replace(FACTORED_ROW, backend="llama.cpp", gates=(gate("parity.mean_kld", math.nan, 0.02),))


def _report(*rows: Row) -> Report:
    windows = {"count": 8, "length": 512, "predicted_tokens": 4088, "sha256": "0" * 64}
    return Report(rows, windows, {"threads": 2}, {"seed": 3, "text": Path("a")}, {"torch": "2"}, {"cpu": "x"})


def test_json_is_valid_and_complete(tmp_path: Path) -> None:
    broken = replace(FAILED_ROW, perplexity=Perplexity(math.inf, math.nan, 10))
    write_report(_report(DENSE_ROW, broken), tmp_path / "out" / "report.json")
    document = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert document["schema_version"] == SCHEMA_VERSION
    assert document["passed"] is False
    assert document["rows"][0]["bits_per_weight"] == pytest.approx(8 * 143_000_000 / 134_515_008)
    assert document["rows"][0]["speeds"][0]["prefill"]["median"] == 1500
    assert document["rows"][1]["perplexity"] == {"value": None, "standard_error": None, "tokens": 10}
    assert document["provenance"] == {"seed": 3, "text": "a"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]


def test_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LowRankError):
        write_report(_report(DENSE_ROW), tmp_path / "file" / "report.json")


def test_table_fits_100_columns_and_shows_pairs() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(render(_report(DENSE_ROW, FACTORED_ROW)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 100
    for part in ("onnxruntime-genai", "int8", "dense", "factored", "21.99 ± 0.71", "0.512", "99.9", "1500", "1.00x"):
        assert part in text, part
    assert "…" not in text
    assert "2 gates passed" in text


def test_table_names_failed_gates() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=100, color_system=None)
    report = _report(DENSE_ROW, FAILED_ROW)
    console.print(render(report))
    assert "1 of 2 gates failed" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "llama.cpp int8 (factored): parity.mean_kld nan, at most 0.02" in console.file.getvalue()  # type: ignore[attr-defined]
    assert [(row.backend, item.name) for row, item in report.failures] == [("llama.cpp", "parity.mean_kld")]
