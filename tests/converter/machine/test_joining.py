"""Jobs divided among processes: the same result as one process, whatever their number; one dead ends the job."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch

import lowrank_export
from lowrank_export.converter.machine.joining import started
from lowrank_export.converter.pipeline import compress
from lowrank_export.converter.recipe import make_recipe

DIVIDED = Path(__file__).parents[2] / "divided.py"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
# every family of methods: how the truncation sees, what follows it, how ranks are chosen, what is stored
JOBS: dict[str, dict[str, Any]] = {
    "adasvd": {},
    "adasvd-stacked": {"calibration_reduction": "stack-of-batch", "buckets": 5},
    "svd-llm": {"method": "svd-llm"},
    "svd-llm-u": {"method": "svd-llm-u"},
    "type-loss": {"method": "svd-llm-v2"},
    "fisher": {"method": "fwsvd", "gradient_windows": 3},
    "sensitivity": {"method": "asvd"},
    "block-error": {"method": "lc-svd", "refine_epochs": 2},
    "stable-rank": {"method": "asvd-stable-rank", "retention": 0.8},
    "adaptive": {"method": "saes"},
    "loss-aware": {"method": "loss-aware", "gradient_windows": 5},
    "pivot": {"method": "loss-aware", "layout": "pivot", "gradient_windows": 5},
    "no-windows": {"method": "loss-aware", "windows": 1, "held_out": 1, "gradient_windows": 1},
    "block": {"method": "svd-llm", "refine": "block", "refine_epochs": 2},
    "model": {"method": "adasvd", "refine": "model", "refine_epochs": 1, "refine_model_epochs": 2},
}


@pytest.fixture(scope="module")
def folder(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with "dense" and "text.txt"."""
    path = tmp_path_factory.mktemp("divided")
    tiny.save_dense(path / "dense", "llama")
    (path / "text.txt").write_text(tiny.TEXT, encoding="utf-8")
    return path


def values(folder: Path, **options: Any) -> dict[str, Any]:
    """Seven windows: two or three processes cannot have equally many."""
    common = {"retention": 0.6, "rank_multiple": 4, "windows": 7, "window_length": 64, "held_out": 1}
    paths = {"model": str(folder / "dense"), "calibration": str(folder / "text.txt")}
    return {**paths, **common, "activations": "float32", **options}


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1"}


def products(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Parameter or linear -> its value, in float64: signs of singular vectors do not count, only products do."""
    model = lowrank_export.load(checkpoint)
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "dense_weight"):
            found[name] = module.dense_weight().detach().double()
    found |= {name: p.detach().double() for name, p in model.named_parameters() if ".lowrank_" not in name}
    return found


def differences(a: Path, b: Path) -> float:
    """The largest difference of any tensor relative to its size."""
    first, second = products(a), products(b)
    assert first.keys() == second.keys()
    return max(float((second[name] - value).norm() / value.norm()) for name, value in first.items())


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_processes_gives_the_same(folder: Path, tmp_path: Path, count: int) -> None:
    jobs = [(values(folder, **options), str(tmp_path / name)) for name, options in JOBS.items()]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    command = [*TORCHRUN, str(count), str(DIVIDED), str(tmp_path / "jobs.json")]
    subprocess.run(command, check=True, env=environment(), timeout=1800)
    for name, options in JOBS.items():
        alone = folder / "alone" / name
        if not alone.is_dir():
            compress(make_recipe(values(folder, **options), "test"), alone, device="cpu")
        found, wanted = (json.loads((path / "plan.json").read_text()) for path in (tmp_path / name, alone))
        ranks = [{linear: row["rank"] for linear, row in plan["linears"].items()} for plan in (found, wanted)]
        assert ranks[0] == ranks[1], name
        # as far as one process with another number of windows per forward is away: a few 1e-4 for the aligned methods
        assert differences(tmp_path / name, alone) < 2e-3, name
        for file in ("recipe.yaml", "calibration.json", "config.json"):
            assert (tmp_path / name / file).read_bytes() == (alone / file).read_bytes()
        for linear, row in wanted["linears"].items():
            for loss, value in row.get("relative_loss", {}).items():
                assert found["linears"][linear]["relative_loss"][loss] == pytest.approx(value, rel=1e-4, abs=1e-9)


@pytest.fixture(scope="module")
def deep(folder: Path, tiny: ModuleType) -> Path:
    """A folder with a model of many blocks, and "whole": what three processes make of it when left alone."""
    tiny.save_dense(folder / "deep", "llama", blocks=16)
    subprocess.run([*TORCHRUN, "3", *compression(folder, folder / "whole")], check=True, env=environment())
    return folder


def compression(folder: Path, out: Path) -> list[str]:
    """Arguments of torchrun or python."""
    given = values(folder, model=str(folder / "deep"), method="loss-aware", gradient_windows=3)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    return ["-m", "lowrank_export", "compress", *options, "--threads=1", f"--out={out}"]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def wait_for_blocks(journal: Path, count: int, alive: subprocess.Popen[Any]) -> None:
    while len(list(journal.glob("block-*.safetensors"))) < count:
        assert alive.poll() is None
        time.sleep(0.01)


@pytest.mark.slow
def test_a_dead_process_ends_the_job_which_goes_on(deep: Path, tmp_path: Path) -> None:
    """Started without torchrun, as other launchers do, to see every exit code."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    processes = []
    for rank in ("0", "1", "2"):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, *compression(deep, tmp_path / "cut")]
        processes.append(subprocess.Popen(command, env={**environment(), **own}, stderr=subprocess.PIPE, text=True))
    journal = tmp_path / ".cut.unfinished"
    wait_for_blocks(journal, 3, processes[0])
    processes[1].kill()
    said = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [5, -signal.SIGKILL, 5]
    errors = [line for text in said for line in text.splitlines() if line.startswith("error: ")]
    assert errors and all("another worker of this job is gone" in line and "goes on" in line for line in errors)
    assert len(errors) <= 2  # torchrun keeps the store in which one sees that another has spoken; here it may be gone
    assert not (tmp_path / "cut").exists() and 3 <= len(list(journal.glob("block-*"))) < 16
    shutil.copytree(journal, tmp_path / ".other.unfinished")
    shutil.copytree(journal, tmp_path / ".alone.unfinished")
    # the same number of processes: the same bytes; another number: the same within float tolerance
    for count, name in (("3", "cut"), ("2", "other")):
        done = subprocess.run(
            [*TORCHRUN, count, *compression(deep, tmp_path / name)], env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("where the job stopped") == 1
    assert contents(tmp_path / "cut") == contents(deep / "whole")
    subprocess.run([sys.executable, *compression(deep, tmp_path / "alone")], env=environment(), check=True)
    assert 0 < differences(tmp_path / "other", deep / "whole") < 2e-2
    assert 0 < differences(tmp_path / "alone", deep / "whole") < 2e-2
    assert {entry.name for entry in tmp_path.iterdir()} == {"cut", "other", "alone"}


@pytest.mark.slow
def test_torchrun_starts_a_killed_job_again(deep: Path, tmp_path: Path) -> None:
    """The writer itself is killed, once."""
    command = [*TORCHRUN, "3", "--max-restarts", "1", *compression(deep, tmp_path / "cut")]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        wait_for_blocks(tmp_path / ".cut.unfinished", 2, process)
        workers = psutil.Process(process.pid).children(recursive=True)
        (writer,) = [worker for worker in workers if worker.environ().get("RANK") == "0"]
        writer.kill()
        said = process.communicate(timeout=600)[1]
    assert process.returncode == 0, said
    assert "going on with block" in said
    assert contents(tmp_path / "cut") == contents(deep / "whole")


@pytest.mark.slow
def test_one_process_speaks(folder: Path, tmp_path: Path) -> None:
    """An error that all meet, one that the writer meets, and a command for one process: one line each."""
    (tmp_path / "there").mkdir()
    command = compression(folder, tmp_path / "there")
    for arguments, words in (
        (command, "already exists"),
        ([*command[:3], "--model", "nowhere", "--out", "x"], "no such folder or file"),
        (["-m", "lowrank_export", "inspect", str(folder / "dense")], "is the work of one process"),
    ):
        done = subprocess.run([*TORCHRUN, "2", *arguments], env=environment(), capture_output=True, text=True)
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode != 0 and len(errors) == 1 and words in errors[0], done.stderr
        assert "exitcode  : 2" in done.stderr or "exitcode  : 3" in done.stderr


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpus_give_what_one_process_gives(folder: Path, tmp_path: Path) -> None:
    """A process per GPU, NCCL."""
    asked = [f"--{name.replace('_', '-')}={value}" for name, value in values(folder, method="loss-aware").items()]
    for name, count in (("gpus", str(torch.cuda.device_count())), ("one", "1")):
        arguments = ["-m", "lowrank_export", "compress", *asked, "--device=cuda", f"--out={tmp_path / name}"]
        subprocess.run([*TORCHRUN, count, *arguments], env=environment(), check=True)
    assert differences(tmp_path / "gpus", tmp_path / "one") < 2e-3


def test_without_torchrun_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert started() == 1
    monkeypatch.setenv("WORLD_SIZE", "4")  # some clusters set it for every program
    assert started() == 1
    monkeypatch.setenv("RANK", "0")
    assert started() == 4
