"""Processes with a GPU each, which stand-ins are: what they exchange lies where it must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lowrank_export
from lowrank_export.converter.core.recipe import make_recipe
from lowrank_export.converter.pipeline import compress

DIVIDED = Path(__file__).parents[2] / "divided.py"
JOBS: dict[str, dict[str, Any]] = {
    "adasvd": {"method": "adasvd"},
    "fisher": {"method": "fwsvd"},
    "block-error": {"method": "lc-svd", "refine_epochs": 1},
    "pivot": {"method": "loss-aware", "layout": "pivot"},
    "model": {"method": "svd-llm", "refine": "model", "refine_epochs": 1},
}


def values(models: Path, **options: Any) -> dict[str, Any]:
    """Three windows: two processes cannot have equally many."""
    common = {"retention": 0.6, "rank_multiple": 4, "windows": 3, "window_length": 32, "held_out": 1}
    paths = {"model": str(models / "dense"), "calibration": str(models / "text.txt")}
    return {**paths, **common, "gradient_windows": 3, "activations": "float32", **options}


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Linear -> what it multiplies by."""
    modules = lowrank_export.load(checkpoint).named_modules()
    return {name: module.dense_weight().detach() for name, module in modules if hasattr(module, "dense_weight")}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the tests marked cuda run on it")
def test_two_gpus_give_what_one_cpu_gives(models: Path, tmp_path: Path) -> None:
    jobs = [(values(models, **options), str(tmp_path / name)) for name, options in JOBS.items()]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [*launcher, str(DIVIDED), str(tmp_path / "jobs.json"), "cuda"],
        env={**kept, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    for name, options in JOBS.items():
        compress(make_recipe(values(models, **options), "test"), tmp_path / "alone" / name, device="cpu")
        found, wanted = weights(tmp_path / name), weights(tmp_path / "alone" / name)
        assert found.keys() == wanted.keys()
        assert max(float((found[key] - value).norm() / value.norm()) for key, value in wanted.items()) < 2e-3, name
