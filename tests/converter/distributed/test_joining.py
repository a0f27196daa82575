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
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch

import lowrank_export
from lowrank_export.converter.core.recipe import make_recipe
from lowrank_export.converter.distributed.joining import started
from lowrank_export.converter.pipeline import compress

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


Group = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def group(forked: Callable[..., Any]) -> Group:
    """Start a job's processes as a launcher does, without its own start and theirs: (count, words, log) -> processes.

    The log of each has its rank behind its name. As torchrun does, and other launchers do not, `store` keeps the store
    by which they find each other in another process: this one.
    """
    stores = []

    def start(count: int, words: Sequence[str], log: Path, *, store: bool = False) -> list[Any]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if store:
            stores.append(torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False))
            common["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        return [
            forked(words, Path(f"{log}{rank}"), RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(count)
        ]

    return start


def codes(processes: Sequence[Any], *, first_ends_all: bool = False) -> list[int]:
    """Exit codes; as torchrun does, the others are told to stop once one has failed, if asked."""
    while any(process.is_alive() for process in processes):
        if first_ends_all and any(process.exitcode for process in processes):
            for process in processes:
                process.terminate()
        time.sleep(0.01)
    return [process.exitcode for process in processes]


def spoken(log: Path, count: int) -> str:
    return "".join(Path(f"{log}{rank}").read_text() for rank in range(count))


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
def test_any_number_of_processes_gives_the_same(folder: Path, tmp_path: Path, group: Group, count: int) -> None:
    jobs = [(values(folder, **options), str(tmp_path / name)) for name, options in JOBS.items()]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    done = codes(group(count, [str(DIVIDED), str(tmp_path / "jobs.json")], tmp_path / "log"), first_ends_all=True)
    assert done == [0] * count, spoken(tmp_path / "log", count)
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
def deep(folder: Path, tiny: ModuleType, group: Group) -> Path:
    """A folder with a model of many blocks, and "whole-3", "whole-2": what so many processes make when left alone."""
    tiny.save_dense(folder / "deep", "llama", blocks=16)
    for count in (3, 2):
        words, log = compression(folder, folder / f"whole-{count}"), folder / f"log-{count}-"
        assert codes(group(count, words, log)) == [0] * count, spoken(log, count)
    return folder


def compression(folder: Path, out: Path) -> list[str]:
    """The words after python's -m."""
    given = values(folder, model=str(folder / "deep"), method="loss-aware", gradient_windows=3)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    return ["lowrank_export", "compress", *options, "--threads=1", f"--out={out}"]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def wait_for_blocks(journal: Path, count: int, ended: Callable[[], object]) -> None:
    while len(list(journal.glob("block-*.safetensors"))) < count:
        assert not ended()
        time.sleep(0.01)


@pytest.mark.slow
def test_a_dead_process_ends_the_job_which_goes_on(deep: Path, tmp_path: Path, group: Group) -> None:
    """Started without torchrun, as other launchers do, to see every exit code."""
    (logs := tmp_path / "logs").mkdir()
    processes = group(3, compression(deep, tmp_path / "cut"), logs / "cut")
    journal = tmp_path / ".cut.unfinished"
    wait_for_blocks(journal, 3, lambda: not processes[0].is_alive())
    processes[1].kill()
    assert codes(processes) == [5, -signal.SIGKILL, 5]
    errors = [line for line in spoken(logs / "cut", 3).splitlines() if line.startswith("error: ")]
    assert errors and all("another worker of this job is gone" in line and "goes on" in line for line in errors)
    assert len(errors) <= 2  # torchrun keeps the store in which one sees that another has spoken; here it may be gone
    assert not (tmp_path / "cut").exists() and 3 <= len(list(journal.glob("block-*"))) < 16
    shutil.copytree(journal, tmp_path / ".other.unfinished")
    shutil.copytree(journal, tmp_path / ".alone.unfinished")
    # the same number of processes: the same bytes; another number: the same within float tolerance
    for count, name in ((3, "cut"), (2, "other"), (1, "alone")):
        log = logs / f"{name}-again"
        assert codes(group(count, compression(deep, tmp_path / name), log)) == [0] * count, spoken(log, count)
        assert spoken(log, count).count("where the job stopped") == 1
    assert contents(tmp_path / "cut") == contents(deep / "whole-3")
    assert 0 < differences(tmp_path / "other", deep / "whole-3") < 2e-2
    assert 0 < differences(tmp_path / "alone", deep / "whole-3") < 2e-2
    assert {entry.name for entry in tmp_path.iterdir()} == {"cut", "other", "alone", "logs"}


@pytest.mark.slow
def test_torchrun_starts_a_killed_job_again(deep: Path, tmp_path: Path) -> None:
    """The writer itself is killed, once."""
    command = [*TORCHRUN, "2", "--max-restarts", "1", "-m", *compression(deep, tmp_path / "cut")]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        wait_for_blocks(tmp_path / ".cut.unfinished", 2, lambda: process.poll() is not None)
        workers = psutil.Process(process.pid).children(recursive=True)
        (writer,) = [worker for worker in workers if worker.environ().get("RANK") == "0"]
        writer.kill()
        said = process.communicate(timeout=600)[1]
    assert process.returncode == 0, said
    assert "going on with block" in said
    assert contents(tmp_path / "cut") == contents(deep / "whole-2")


def test_one_process_speaks(folder: Path, tmp_path: Path, group: Group) -> None:
    """An error that all meet, one that the writer meets, and a command for one process: one line each."""
    (tmp_path / "there").mkdir()
    command = compression(folder, tmp_path / "there")
    for words, code, told in (
        (command, 2, "already exists"),
        ([*command[:2], "--model", "nowhere", "--out", str(tmp_path / "x")], 3, "no such folder or file"),
        (["lowrank_export", "inspect", str(folder / "dense")], 2, "is the work of one process"),
    ):
        log = tmp_path / f"log-{told}"
        found = codes(group(2, words, log, store=True), first_ends_all=True)
        errors = [line for line in spoken(log, 2).splitlines() if line.startswith("error: ")]
        assert code in found and 0 not in found and len(errors) == 1 and told in errors[0], (found, spoken(log, 2))


@pytest.mark.slow
def test_one_process_speaks_under_torchrun(tmp_path: Path) -> None:
    command = [*TORCHRUN, "2", "-m", "lowrank_export", "compress", "--model", "nowhere", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0 and len(errors) == 1 and "no such folder or file" in errors[0], done.stderr
    assert "exitcode  : 3" in done.stderr


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
