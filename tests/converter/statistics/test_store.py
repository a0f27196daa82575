"""Statistics that several compressions share: the same result, and only what they were made from."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file

from lowrank_export.converter.core.errors import UsageError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.methods import METHODS
from lowrank_export.converter.pipeline import compress
from lowrank_export.converter.planning.preparation import gather_statistics
from lowrank_export.converter.statistics.store import IDENTITY, Statistics, open_statistics


@pytest.fixture(scope="module")
def models(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with "dense", "other" and "text.txt"."""
    folder = tmp_path_factory.mktemp("models")
    tiny.save_dense(folder / "dense", "llama")
    tiny.save_dense(folder / "other", "llama", seed=1)
    (folder / "text.txt").write_text(tiny.TEXT, encoding="utf-8")
    return folder


@pytest.fixture
def recipe(models: Path, small_recipe: Any) -> Any:
    return partial(small_recipe, models, windows=4)


@pytest.mark.parametrize("method", METHODS)
def test_shared_statistics_change_nothing(recipe: Any, tmp_path: Path, method: str) -> None:
    gather_statistics(recipe(method=method), tmp_path / "kept", device="cpu", progress=SilentProgress())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").glob("*")}
    assert bool(before) == METHODS[method].needs_calibration
    compress(recipe(method=method), tmp_path / "shared", device="cpu", statistics=tmp_path / "kept")
    compress(recipe(method=method), tmp_path / "alone", device="cpu")
    for shard in (tmp_path / "alone").glob("*.safetensors"):
        alone, shared = load_file(shard), load_file(tmp_path / "shared" / shard.name)
        assert alone.keys() == shared.keys() and all(bool((alone[name] == shared[name]).all()) for name in alone)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").glob("*")} == before


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"model": "other"}, "source_sha256"),
        ({"windows": 3}, "windows"),
        ({"window_length": 16}, "window_length"),
        ({"held_out": 1}, "held_out"),
        ({"seed": 7}, "seed"),
        ({"calibration": "python-docs"}, "calibration_sha256"),
        ({"gradient_windows": 3}, "gradient_windows"),
        ({"sensitivity_windows": 3}, "sensitivity_windows"),
        ({"dtype": "bfloat16"}, "dtype"),
    ],
)
def test_statistics_of_something_else_are_refused(
    recipe: Any, models: Path, tmp_path: Path, options: dict[str, Any], key: str
) -> None:
    kept = tmp_path / "kept"
    compress(recipe(method="svd-llm"), tmp_path / "out", statistics=kept)
    if "model" in options:
        options = {"model": str(models / options["model"])}
    with pytest.raises(UsageError, match=f"{kept}: holds statistics made with another {key} "):
        compress(recipe(method="svd-llm", **options), tmp_path / "b", statistics=kept)
    assert not (tmp_path / "b").exists()
    compress(recipe(method="svd-llm", retention=0.5), tmp_path / "b", statistics=kept)


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match="is not a folder of statistics"):
        Statistics(tmp_path).claim({"seed": 0})
    with pytest.raises(UsageError, match="is not a folder"), open_statistics(tmp_path / "notes.txt"):
        pass
    (tmp_path / "notes.txt").rename(tmp_path / IDENTITY)
    for damaged in ("", "[]", "{"):
        (tmp_path / IDENTITY).write_text(damaged)
        with pytest.raises(UsageError, match="damaged"):
            Statistics(tmp_path).claim({"seed": 0})
    (tmp_path / IDENTITY).write_text(json.dumps({"seed": 0}))
    Statistics(tmp_path).claim({"seed": 0})
    with pytest.raises(UsageError, match=r"another seed \(0, here 1\)"):
        Statistics(tmp_path).claim({"seed": 1})
