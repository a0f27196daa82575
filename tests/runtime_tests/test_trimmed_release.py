"""Fewer tokens in the main job: the first stage, kept between runs, and refused where it is no stage."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from typer.testing import CliRunner

from lowrank_export.cli import app
from lowrank_export.converter.core.recipe import RECIPE_FILE, read_recipe

TEXT = "the rank of the weight is the rank of the matrix; another one has another rank\n" * 60


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType, llama_cpp_runtime: Path) -> Path:
    place = tmp_path_factory.mktemp("job")
    tiny.save_dense(place / "dense", "llama", hidden_size=64)
    (place / "text.txt").write_text(TEXT, encoding="utf-8")
    return place


def test_the_whole_job(place: Path, tiny: ModuleType) -> None:
    out, text = place / "out", str(place / "text.txt")
    command = [*tiny.job_options(place / "dense", out, text), "--format", "gguf", "--keep-vocabulary", text]
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code in (0, 4), done.stderr  # gates of a tiny random model may fail
    report = json.loads(done.stdout)
    cost = report["provenance"]["vocabulary"]
    before, after = cost["rows"]
    assert after < before
    assert json.loads((out / "checkpoint" / "config.json").read_text())["vocab_size"] == after
    assert read_recipe(out / "checkpoint" / RECIPE_FILE).model == str(out / "trimmed")
    assert f"{before:,} tokens -> {after:,}" in done.stderr
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 2
    assert "already exists" in again.stderr
    (out / "report.json").unlink()
    made = (out / "trimmed" / "config.json").stat().st_mtime_ns
    resumed = CliRunner().invoke(app, command)
    assert resumed.exit_code == done.exit_code, resumed.stderr
    assert (out / "trimmed" / "config.json").stat().st_mtime_ns == made
    (out / "report.json").unlink()
    other = CliRunner().invoke(app, [*command, "--vocabulary-size", "300"])
    assert other.exit_code == 2
    assert "another model with fewer tokens" in other.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["compress", "--out", "x"], "keep_vocabulary: is a stage of the main command"),
        (["plan"], "keep_vocabulary: is a stage of the main command"),
        (["statistics", "--out", "x", "--method", "svd-llm"], "keep_vocabulary: is a stage of the main command"),
    ],
)
def test_refused_where_it_is_no_stage(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "asked.yaml"
    recipe.write_text(f"model: {place / 'dense'}\nkeep_vocabulary: [{place / 'text.txt'}]\n", encoding="utf-8")
    done = CliRunner().invoke(app, [*command, "--recipe", str(recipe)])
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_inputs_are_looked_at_before_any_work(place: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "windows.npy", np.ones((2, 32), np.int32))
    common = ["--model", str(place / "dense"), "--keep-vocabulary", str(place / "text.txt"), "--format", "gguf"]
    for more, message, code in (
        (["--evaluate", "none.txt"], "none.txt", 3),
        (
            ["--calibration", str(tmp_path / "windows.npy"), "--evaluate", str(place / "text.txt")],
            "whole vocabulary",
            2,
        ),
    ):
        done = CliRunner().invoke(app, [*common, *more, "--evaluation-length", "32", "--out", str(tmp_path / "x")])
        assert done.exit_code == code
        assert message in done.stderr
        assert not (tmp_path / "x").exists()


def test_a_size_of_nothing(place: Path) -> None:
    done = CliRunner().invoke(app, ["--model", str(place / "dense"), "--vocabulary-size", "300", "--out", "x"])
    assert done.exit_code == 2
    assert "give keep_vocabulary" in done.stderr
