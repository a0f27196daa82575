"""The disk that a job takes: what is predicted is what is written, and too little is refused before any work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from lowrank_export.cli import app
from lowrank_export.converter.core.errors import ResourceError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.core.recipe import Recipe
from lowrank_export.converter.model.source import open_source
from lowrank_export.converter.pipeline import compress
from lowrank_export.converter.planning.disk_forecast import (
    bytes_at,
    check_disk,
    checkpoint_bytes,
    compression_bytes,
    factored_shapes,
)


@pytest.fixture(scope="module")
def model(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with "m" and "text.txt"."""
    folder: Path = tmp_path_factory.mktemp("m")
    tiny.save_dense(folder / "m", "llama")
    (folder / "text.txt").write_text(tiny.TEXT)
    return folder


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have the disk say that so many bytes are free."""
    return lambda count: monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=count))


def recipe(model: Path, **values: Any) -> Recipe:
    given = {"model": str(model / "m"), "calibration": str(model / "text.txt"), "method": "svd-llm"}
    sizes = {"windows": 4, "window_length": 32, "held_out": 0, "rank_multiple": 1}
    return Recipe(**{**given, **sizes, **values})


@pytest.mark.parametrize(
    "values", [{}, {"dtype": "bfloat16"}, {"layout": "pivot"}, {"keep_dense": ("down_proj",)}, {"retention": 0.5}]
)
def test_what_is_predicted_is_written(model: Path, tmp_path: Path, values: dict[str, Any]) -> None:
    """Of equal retentions; headers of shards come on top, permutations that are not needed go off."""
    asked = recipe(model, **values)
    source = open_source(asked.model, SilentProgress())
    shapes = factored_shapes(asked, source)
    compress(asked, tmp_path / "out")
    written = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    assert 0.9 * written < checkpoint_bytes(asked, shapes) <= written
    assert checkpoint_bytes(asked, shapes) < compression_bytes(asked, source) < 2 * checkpoint_bytes(asked, shapes)


def test_a_disk_that_is_too_small(model: Path, tmp_path: Path, free: Callable[[int], None]) -> None:
    asked = recipe(model)
    needed = compression_bytes(asked, open_source(asked.model, SilentProgress()))
    free(needed - 1)
    with pytest.raises(ResourceError, match=r"the factored checkpoint and its journal take about .* are free on that"):
        compress(asked, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    free(needed)
    compress(asked, tmp_path / "out")


@pytest.mark.parametrize("command", [[], ["compare"], ["sweep", "--format", "onnx"], ["export"]])
def test_every_command_looks_first(
    command: list[str], model: Path, tmp_path: Path, free: Callable[[int], None]
) -> None:
    free(100_000)
    out, given = tmp_path / "out", ["--model", str(model / "m"), "--calibration", str(model / "text.txt")]
    given += ["--windows", "4", "--window-length", "32", "--rank-multiple", "4", "--evaluate", str(model / "text.txt")]
    given += ["--evaluation-windows", "2", "--evaluation-length", "32"]
    if command == ["export"]:
        command, given = ["export", str(model / "m"), "--format", "gguf"], []
    done = CliRunner().invoke(app, [*command, *given, "--out", str(out)])
    assert done.exit_code == ResourceError.exit_code, done.stderr
    assert "choose another --out" in done.stderr.splitlines()[-1] and not list(tmp_path.rglob("*.*"))


def test_what_is_there_counts(tmp_path: Path, free: Callable[[int], None]) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(bytes(10))
    (tmp_path / "d").write_bytes(bytes(5))
    (tmp_path / "a" / "link").symlink_to(tmp_path / "d")
    assert bytes_at(tmp_path / "a", tmp_path / "d", tmp_path / "nowhere") == 15
    free(9)
    check_disk(tmp_path / "not" / "yet" / "there", 9, "files")
    with pytest.raises(ResourceError, match="there: files take about 1 MB, and 1 MB are free"):
        check_disk(tmp_path / "not" / "yet" / "there", 10, "files")
