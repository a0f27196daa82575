"""The torch backend and a whole validation on the stand-in for a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import ResourceError
from lowrank_export.converter.storage.byte_size import MemoryLimits
from lowrank_export.runtime_tests import doctor
from lowrank_export.runtime_tests.backends.torch_reference import TorchBackend, open_torch
from lowrank_export.runtime_tests.metrics.corpora import evaluation_windows
from lowrank_export.runtime_tests.metrics.footprint import Footprint
from lowrank_export.runtime_tests.metrics.measure import check_measurable
from lowrank_export.runtime_tests.report.markdown import markdown
from lowrank_export.runtime_tests.report.report import Report
from lowrank_export.runtime_tests.settings import Settings
from lowrank_export.runtime_tests.timing import timing
from lowrank_export.runtime_tests.validate import DenseModel, validate

TOKENS = np.arange(24, dtype=np.int32)


@pytest.fixture(scope="module")
def folder(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with "dense" and "factored"."""
    path = tmp_path_factory.mktemp("models")
    tiny.save_dense(path / "dense", "qwen3")
    tiny.save_factored(path / "factored", "qwen3", rank=24)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_backend_gives_the_cpus_logits(folder: Path, gpu: Any, dtype: str) -> None:
    found = []
    for device in ("cpu", "cuda"):
        backend = open_torch(folder / "factored", device=device, dtype=dtype)
        pieces = [backend.feed(piece) for piece in (TOKENS[:10], TOKENS[10:11], TOKENS[11:])]
        backend.reset()
        found.append([backend.window_logits(TOKENS), *pieces, backend.feed_all(np.stack([TOKENS, TOKENS[::-1]]))])
        assert (gpu.memory.allocated > 0) == (device == "cuda")
        backend.close()
    assert all(a.dtype == np.float32 and np.array_equal(a, b) for a, b in zip(*found, strict=True))


def validated(folder: Path, windows: Any, device: str) -> Report:
    settings = Settings(prompt_tokens=(8,), decode_tokens=2, repeats=1, sample_tokens=4, pieces=2, device=device)
    return validate(
        [folder / "factored"],
        reference=folder / "factored",
        dense=DenseModel(folder / "dense"),
        windows=windows,
        settings=replace(settings, threads=1),
    )


def test_a_validation_finds_what_the_cpu_finds(
    folder: Path, tiny: ModuleType, gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def footprint(path: Path, name: str, **options: Any) -> Footprint:
        asked.append(options)
        return Footprint(1.0, 10**8, 2 * 10**8)

    monkeypatch.setattr(timing, "measure_footprint", footprint)
    monkeypatch.setattr("lowrank_export.runtime_tests.validate.memory_bandwidth", lambda threads: 1e10)
    windows = evaluation_windows(tiny.tokenizer(), tiny.TEXT, windows=2, length=24)
    found = {device: validated(folder, windows, device) for device in ("cpu", "cuda")}
    assert [options["device"] for options in asked] == ["cpu"] * 3 + ["cuda"] * 3
    for a, b in zip(found["cpu"].rows, found["cuda"].rows, strict=True):
        timed = {"speeds": (), "dense_speeds": (), "bandwidth_share": None}
        assert replace(a, **timed) == replace(b, **timed)
        assert a.bandwidth_share is not None and b.bandwidth_share is None and b.speed is not None
    assert found["cuda"].settings["device"] == "cuda" and "stand-in" in str(found["cuda"].machine["gpu"])
    assert "## Speed and memory" in markdown(found["cuda"])
    assert gpu.memory.peak > 0


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(ResourceError, match="--device cuda:3: this machine has 1, counted from 0"):
        open_torch(folder / "dense", device="cuda:3")


def test_out_of_memory_is_one_line(folder: Path, tiny: ModuleType, cuda_stand_in: ModuleType) -> None:
    with cuda_stand_in.StandIn(total=10**5):
        with pytest.raises(ResourceError, match="cuda: not enough memory for the model in float32"):
            TorchBackend(tiny.model("llama"), device="cuda")
        with pytest.raises(
            ResourceError, match="cuda: to measure takes the dense model there, 1 MB, and 1 MB are free"
        ):
            check_measurable(CheckpointReader(folder / "dense"), MemoryLimits(), "cuda")
    with cuda_stand_in.StandIn(total=800_000):
        backend = open_torch(folder / "dense", device="cuda")
        with pytest.raises(ResourceError, match="cuda: out of memory at 400 tokens; use shorter windows"):
            backend.window_logits(np.resize(TOKENS, 400))
        check_measurable(CheckpointReader(folder / "dense"), MemoryLimits(process=10**12), "cpu")


def test_the_doctor_tries_every_gpu(cuda_stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    monkeypatch.setattr(doctor, "check_gpu", lambda device: tried.append(str(device)))
    with cuda_stand_in.StandIn(count=2):
        doctor._check_gpus()
    assert tried == ["cuda:0", "cuda:1"]
    assert not torch.cuda.is_available()
    doctor._check_gpus()
    assert len(tried) == 2
