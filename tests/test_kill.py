"""Killed at any moment, a compression goes on and ends with the bytes of one that was left alone."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import psutil
import pytest

KILLS = 20


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def children_seconds() -> float:
    """Processor time of all processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def reaches(process: subprocess.Popen[bytes], moment: float) -> bool:
    """Wait until a process has used that many seconds of processor time: False if it ends before."""
    clock = psutil.Process(process.pid)
    while process.poll() is None:
        if sum(clock.cpu_times()[:4]) >= moment:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.slow
def test_twenty_kills(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "dense", "llama", blocks=12)
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    command = [sys.executable, "-m", "lowrank_export", "compress", "--model", "dense", "--calibration", "text.txt"]
    command += ["--method", "loss-aware", "--layout", "pivot", "--refine", "model", "--refine-epochs", "3"]
    command += ["--windows", "8", "--window-length", "64", "--rank-multiple", "4", "--out"]

    def run(out: str) -> None:
        subprocess.run([*command, out], cwd=tmp_path, check=True, capture_output=True)

    before = children_seconds()
    run("whole")
    whole = children_seconds() - before
    chance, kills, finished = random.Random(0), 0, 0  # noqa: S311
    while kills < KILLS:
        with subprocess.Popen([*command, "cut"], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
            if reaches(process, chance.uniform(0.3, 1.0) * whole):
                process.kill()
                kills += 1
        assert process.returncode in (0, -signal.SIGKILL)
        if (tmp_path / "cut").exists():
            assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
            shutil.rmtree(tmp_path / "cut")
            finished += 1
    run("cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert {entry.name for entry in tmp_path.iterdir()} == {"dense", "text.txt", "whole", "cut"}
    print(f"{kills} kills, finished {finished + 1} times")
