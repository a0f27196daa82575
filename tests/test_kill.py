"""Killed at any file it writes, a compression goes on and ends with the bytes of one that was left alone.

`benchmarks/kills.py` draws moments between the files.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

KILLED = Path(__file__).with_name("killed.py")
# every stage keeps files of its own: the claim, statistics, blocks, the refinement's state, the checkpoint
FILES = ["recipe.json", "identity.json", *(f"gradients-0000{block}.safetensors" for block in (2, 1, 0))]
FILES += ["calibration.json", *(f"block-0000{block}.safetensors" for block in range(3))]
FILES += ["refinement.safetensors", "cut"]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.slow
def test_killed_at_every_file(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path / "dense", "llama", blocks=3)
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    command = [sys.executable, str(KILLED), "whole", "cut", "compress", "--model", "dense", "--calibration", "text.txt"]
    command += ["--method", "loss-aware", "--layout", "pivot", "--refine", "model", "--refine-epochs", "2"]
    command += ["--windows", "6", "--window-length", "32", "--held-out", "2", "--rank-multiple", "4", "--out"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    alone, *moments, last = (json.loads(line) for line in done.stdout.splitlines())
    assert alone == 0, done.stderr
    assert moments == [[name, when] for name in FILES for when in ("before", "after")], done.stderr
    # the checkpoint had its name when the last one died: nothing was left to do but to forget the job
    assert last == 2 and "cut: already exists" in done.stderr
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert {entry.name for entry in tmp_path.iterdir()} == {"dense", "text.txt", "whole", "cut"}
