"""Comparison of methods: whole, resumed, refused, interrupted; its table and its page."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest
from typer.testing import CliRunner

from lowrank_export.cli import app
from lowrank_export.converter.core.errors import InputError, UsageError
from lowrank_export.converter.core.recipe import recipe_grid
from lowrank_export.converter.pipeline import compress
from lowrank_export.converter.storage.byte_size import MemoryLimits
from lowrank_export.runtime_tests.child import Cost, run_child
from lowrank_export.runtime_tests.evaluation import Evaluation
from lowrank_export.runtime_tests.studies import compare as module
from lowrank_export.runtime_tests.studies import grid
from lowrank_export.runtime_tests.studies.compare import compare
from lowrank_export.runtime_tests.studies.compare_html import page
from lowrank_export.runtime_tests.studies.compare_results import CompareRow, Comparison
from lowrank_export.runtime_tests.studies.compare_table import render, samples
from lowrank_export.runtime_tests.studies.rows import read_row, write_row

Child = Callable[[Sequence[str], Path], tuple[dict[str, Any], Cost]]
METHODS, RETENTIONS = ("svd-llm", "loss-aware"), (0.8, 0.6)


@pytest.fixture(scope="module")
def values(models: Path) -> dict[str, Any]:
    """What all recipes have in common."""
    return {
        "model": str(models / "dense"),
        "calibration": str(models / "text.txt"),
        "windows": 4,
        "window_length": 32,
        "rank_multiple": 4,
    }


@pytest.fixture(scope="module")
def evaluation(models: Path) -> Evaluation:
    return Evaluation(str(models / "text.txt"), windows=2, window_length=32, threads=1)


@pytest.fixture(scope="module")
def options(values: dict[str, Any], evaluation: Evaluation) -> list[str]:
    """The same on the command line."""
    given = {**values, "evaluate": evaluation.text, "evaluation_windows": 2, "evaluation_length": 32, "threads": 1}
    return [str(part) for key, value in given.items() for part in (f"--{key.replace('_', '-')}", value)]


def asked(arguments: Sequence[str]) -> str:
    """A child's command, method and retention."""
    recipe = Path(arguments[arguments.index("--recipe") + 1]).read_text().splitlines()
    return " ".join([arguments[0], *(line.split()[1] for line in recipe if line[:6] in ("method", "retent"))])


@pytest.fixture(scope="module")
def finished(options: list[str], child_here: Child, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A comparison made by the command line, and the command's result; two of its children are processes."""
    out = tmp_path_factory.mktemp("comparison") / "out"
    wanted = ["--methods", ",".join(METHODS), "--retention", "0.6", "--retention", "0.8"]
    apart = ("statistics loss-aware 0.8", "compress loss-aware 0.6")

    def run_some(arguments: Sequence[str], log: Path) -> tuple[dict[str, Any], Cost]:
        return (run_child if asked(arguments) in apart else child_here)(arguments, log)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "run_child", run_some)
        result = CliRunner().invoke(app, ["compare", "--out", str(out), *wanted, *options, "--json"])
    assert result.exit_code == 0, result.stderr
    return out, result


@pytest.fixture
def again(finished: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the finished comparison."""
    return Path(shutil.copytree(finished[0], tmp_path / "out"))


@pytest.fixture
def children(child_here: Child, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Children run inside this process; their commands' first words and methods are written down here."""
    ran: list[str] = []

    def here(arguments: Sequence[str], log: Path) -> tuple[dict[str, Any], Cost]:
        ran.append(asked(arguments))
        if "--max-memory" in arguments:
            ran[-1] += f" within {arguments[arguments.index('--max-memory') + 1]}"
        return child_here(arguments, log)

    monkeypatch.setattr(grid, "run_child", here)
    return ran


def test_whole_comparison(finished: tuple[Path, Any], values: dict[str, Any], tmp_path: Path) -> None:
    out, result = finished
    assert sorted(entry.name for entry in out.iterdir()) == ["compare.html", "compare.json", "rows"]
    document = json.loads((out / "compare.json").read_text(), parse_constant=pytest.fail)
    assert json.loads(result.stdout) == document
    assert "comparing methods" in result.stderr
    assert [(row["method"], row["retention"]) for row in document["rows"]] == [
        (m, r) for r in RETENTIONS for m in METHODS
    ]
    shared = {found["kind"]: found["methods"] for found in document["statistics"]}
    assert shared == {"dense": ["svd-llm"], "gradients": ["loss-aware"]}
    for cost in (document["rows"][-1]["cost"], document["statistics"][-1]["cost"]):  # those of processes
        assert cost["cpu_seconds"] > 0 and cost["wall_seconds"] > 0 and 1e7 < cost["peak_bytes"] < 1e11
    for row in document["rows"]:
        assert abs(row["kept"] - row["retention"]) < 0.05 and row["compression"] == 1 - row["kept"]
        assert row["measured"]["quality"]["mean_kld"] > 0 and row["measured"]["bits_per_weight"] > 32
        assert row["measured"]["sample"]["prompt"] == document["dense"]["sample"]["prompt"]
    assert document["dense"]["quality"] is None and document["evaluation"]["evaluation_windows"]["count"] == 2
    (recipe, *_) = recipe_grid(values, ["loss-aware"], [0.6], "here")
    done = compress(recipe, tmp_path / "alone")
    assert document["rows"][-1]["kept"] == done.plan["retention"]


def test_only_missing_rows_are_made(
    again: Path, values: dict[str, Any], evaluation: Evaluation, children: list[str]
) -> None:
    recipes = recipe_grid(values, METHODS, RETENTIONS, "here")
    before = json.loads((again / "compare.json").read_text())
    rows = {path: path.stat().st_mtime_ns for path in (again / "rows").iterdir()}
    found = compare(recipes, again, evaluation=evaluation)
    assert children == [] and found.to_json() == before
    assert {path: path.stat().st_mtime_ns for path in (again / "rows").iterdir()} == rows

    (again / "rows" / "svd-llm-0.6.json").unlink()
    found = compare(recipes, again, evaluation=evaluation, limits=MemoryLimits(10**11))
    assert children == [f"{command} svd-llm 0.6 within {10**11}" for command in ("statistics", "compress")]
    after = found.to_json()
    assert [row["measured"] for row in after["rows"]] == [row["measured"] for row in before["rows"]]
    kept = {path: time for path, time in rows.items() if path.name.startswith(("loss-aware", "svd-llm-0.8"))}
    assert len(kept) == 3 and {path: path.stat().st_mtime_ns for path in kept} == kept
    assert not (again / "statistics").exists() and not (again / "checkpoints").exists()

    children.clear()
    compare(recipe_grid(values, ["svd"], [0.6], "here"), again, evaluation=evaluation, keep_checkpoints=True)
    assert children == ["compress svd 0.6"]
    assert [entry.name for entry in (again / "checkpoints").iterdir()] == ["svd-0.6"]
    assert len(json.loads((again / "compare.json").read_text())["rows"]) == 1


def test_interrupted_between_rows(
    tmp_path: Path,
    values: dict[str, Any],
    evaluation: Evaluation,
    children: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipes = recipe_grid(values, ["svd-llm", "adasvd"], [0.8], "here")
    finish = module._row

    def stopped(job: Any, recipe: Any, dense: Any, work: Path) -> CompareRow:
        if recipe.method == "adasvd":
            raise KeyboardInterrupt
        return finish(job, recipe, dense, work)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_row", stopped)
        with pytest.raises(KeyboardInterrupt):
            compare(recipes, out, evaluation=evaluation)
    assert children == ["statistics svd-llm 0.8", "compress svd-llm 0.8"]
    assert sorted(entry.name for entry in out.iterdir()) == ["rows", "statistics"]
    children.clear()
    found = compare(recipes, out, evaluation=evaluation)
    assert children == ["compress adasvd 0.8"] and found.methods == ("svd-llm", "adasvd")
    assert [gathering.methods for gathering in found.statistics] == [("svd-llm", "adasvd")]


def test_what_is_measured_for_all_retentions_is_counted_apart(
    tmp_path: Path, values: dict[str, Any], evaluation: Evaluation, children: list[str]
) -> None:
    recipes = recipe_grid({**values, "refine": "block", "refine_epochs": 1}, ["asvd"], RETENTIONS, "here")
    found = compare(recipes, tmp_path / "out", evaluation=evaluation)
    assert [gathering.kind for gathering in found.statistics] == ["dense", "sensitivity", "gradients"]
    assert children == [*["statistics asvd 0.8"] * 3, "compress asvd 0.8", "compress asvd 0.6"]


def test_rows_of_something_else_are_refused(
    again: Path, values: dict[str, Any], evaluation: Evaluation, children: list[str], tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in again.rglob("*")}
    other = recipe_grid({**values, "windows": 3}, METHODS, RETENTIONS, "here")
    with pytest.raises(UsageError, match=r"svd-llm-0.8.json: was made with recipe.windows 4, not 3; .*--force"):
        compare(other, again, evaluation=evaluation)
    recipes = recipe_grid(values, METHODS, RETENTIONS, "here")
    with pytest.raises(UsageError, match=r"evaluation_windows.count 2, not 1"):
        compare(recipes, again, evaluation=replace(evaluation, windows=1))
    text = tmp_path / "text.txt"
    shutil.copyfile(values["calibration"], text)
    renamed = {**values, "calibration": str(text)}
    compare(recipe_grid(renamed, ["svd"], [0.8], "here"), tmp_path / "own", evaluation=evaluation)
    children.clear()
    text.write_text(text.read_text(encoding="utf-8") + " And more.", encoding="utf-8")
    with pytest.raises(UsageError, match=r"svd-0.8.json: was made with text_sha256.calibration '[0-9a-f]{64}', not"):
        compare(recipe_grid(renamed, ["svd"], [0.8], "here"), tmp_path / "own", evaluation=evaluation)
    assert {path: path.stat().st_mtime_ns for path in again.rglob("*")} == before and not children
    (again / "rows" / "svd-llm-0.8.json").write_text("{}")
    with pytest.raises(UsageError, match="damaged; remove it"):
        compare(recipes, again, evaluation=evaluation)
    (again / "notes.txt").write_text("mine")
    compare(other[:1], again, evaluation=evaluation, force=True)
    assert children == ["statistics svd-llm 0.8", "compress svd-llm 0.8"]
    assert (again / "notes.txt").read_text() == "mine" and len(list((again / "rows").iterdir())) == 3


def test_rows_hold_what_is_no_number(tmp_path: Path) -> None:
    write_row(tmp_path / "row.json", {"recipe": {"seed": 0}}, {"value": float("nan")})
    assert read_row(tmp_path / "row.json", {"recipe": {"seed": 0}}) == {"value": None}
    assert read_row(tmp_path / "none.json", {}) is None
    with pytest.raises(UsageError, match=r"recipe.seed 0, not 1"):
        read_row(tmp_path / "row.json", {"recipe": {"seed": 1}})


def test_a_childs_error_is_passed_on(options: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--model /none/at/all: no such folder"):
        run_child(["compress", "--model", "/none/at/all", "--out", str(tmp_path / "out")], tmp_path / "log")
    wanted = ["--methods", "svd", "--retention", "0.01", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["compare", *options, *wanted])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: retention 0.01 cannot be met with rank multiple 4")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["dense.json", "rows"]


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_signals_end_the_child_too(
    models: Path, options: list[str], tmp_path: Path, forked: Callable[..., Any], number: signal.Signals
) -> None:
    command = ["lowrank_export", "compare", *options, "--model", str(models / "deep")]
    command += ["--methods", "svd", "--retention", "0.8", "--out", str(tmp_path / "out")]
    (log := tmp_path / "log").touch()
    process = forked(command, log)
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("out/checkpoints/.svd-0.8.unfinished/block-00001*")):
        assert process.is_alive() and time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    (child,) = psutil.Process(process.pid).children()
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 130, log.read_text()
    assert log.read_text().splitlines()[-1].startswith("error: interrupted")
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["dense.json", "rows"]


@pytest.fixture
def comparison(again: Path, values: dict[str, Any], evaluation: Evaluation, children: list[str]) -> Comparison:
    return compare(recipe_grid(values, METHODS, RETENTIONS, "here"), again, evaluation=evaluation)


def test_page_is_whole_and_well_formed(comparison: Comparison, finished: tuple[Path, Any]) -> None:
    written = (finished[0] / "compare.html").read_text(encoding="utf-8")
    assert page(comparison) == written
    parsed = ElementTree.fromstring(written)
    for banned in ("http", "<script", "src=", "@import", "url("):
        assert banned not in written
    assert len(list(parsed.iter("svg"))) == 2
    bodies = list(parsed.iter("tbody"))
    assert [len(body.findall("tr")) for body in bodies] == [1, 2, 2, 2]
    columns = len(parsed.findall(".//thead/tr/th"))
    assert all(sum(int(cell.get("colspan", "1")) for cell in row) == columns for row in parsed.iter("tr"))


def test_page_escapes_what_it_shows(comparison: Comparison) -> None:
    row = comparison.rows[0]
    text = replace(row.measured.sample, text="<script>alert(1)</script>\x00\x1b[31m & more")
    bad = replace(row, method="<b>", measured=replace(row.measured, sample=text))
    odd = replace(comparison, rows=(bad, *comparison.rows[1:]), source={**comparison.source, "spec": "<i>&"})
    ElementTree.fromstring(page(odd))
    assert "<script" not in page(odd) and "<b>" not in page(odd) and "<i>" not in page(odd)
    assert "\x1b" not in "".join(text for _, text in samples(odd))


def test_table(comparison: Comparison) -> None:
    from rich.console import Console

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(comparison))
    lines = console.export_text().splitlines()
    for row in comparison.rows:
        assert any(line.startswith(row.method) and f"{row.kept:.3f}" in line for line in lines)
    assert any(line.startswith("statistics: gradients") for line in lines)
    assert len(comparison.best) == 2 and all(len(line) <= 120 for line in lines)
