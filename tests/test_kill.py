"""Killed at any moment, a compression goes on and ends with the bytes of one that was left alone."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

KILLS = 20


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.slow
def test_twenty_kills(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "dense", "llama", blocks=12)
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    command = [sys.executable, "-m", "lowrank_export", "compress", "--model", "dense", "--calibration", "text.txt"]
    command += ["--method", "loss-aware", "--layout", "pivot", "--refine", "model", "--refine-epochs", "3"]
    command += ["--windows", "8", "--window-length", "64", "--rank-multiple", "4", "--out"]

    def run(out: str) -> None:
        subprocess.run([*command, out], cwd=tmp_path, check=True, capture_output=True)

    started = time.monotonic()
    run("whole")
    duration = time.monotonic() - started
    chance, kills, finished = random.Random(0), 0, 0  # noqa: S311
    while kills < KILLS:
        with subprocess.Popen([*command, "cut"], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(timeout=chance.uniform(0.3, 1.0) * duration)
            except subprocess.TimeoutExpired:
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
