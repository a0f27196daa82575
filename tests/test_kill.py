"""Killed at any file it writes, a compression goes on and ends with the bytes of one that was left alone.

`benchmarks/kills.py` draws moments between the files.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

KILLED = Path(__file__).with_name("killed.py")
# every stage keeps files of its own: the claim, statistics, blocks, the refinement's state, the checkpoint
FILES = ["recipe.json", "identity.json", *(f"gradients-0000{block}.safetensors" for block in (2, 1, 0))]
FILES += ["calibration.json", *(f"block-0000{block}.safetensors" for block in range(3))]
FILES += ["refinement.safetensors", "cut"]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.slow
def test_killed_at_every_file(tiny: ModuleType, tmp_path: Path, forked: Callable[..., Any]) -> None:
    (work := tmp_path / "work").mkdir()
    tiny.save_dense(work / "dense", "llama", blocks=3)
    (work / "text.txt").write_text(tiny.TEXT)
    command = ["compress", "--model", "dense", "--calibration", "text.txt", "--method", "loss-aware"]
    command += ["--layout", "pivot", "--refine", "model", "--refine-epochs", "2", "--rank-multiple", "4"]
    command += ["--windows", "6", "--window-length", "32", "--held-out", "2", "--out"]

    def run(*words: Any) -> tuple[int, Path]:
        log = tmp_path / f"log-{len(list(tmp_path.iterdir()))}"
        process = forked(words, log, cwd=work)
        process.join()
        return process.exitcode, log

    code, log = run("lowrank_export", *command, "whole")
    assert code == 0, log.read_text()
    moments: list[list[str]] = []
    while (ended := run(KILLED, json.dumps(moments), *command, "cut"))[0] == -signal.SIGKILL:
        moments.append(json.loads(Path(f"{ended[1]}.out").read_text()))
    code, log = ended
    assert moments == [[name, when] for name in FILES for when in ("before", "after")], log.read_text()
    # the checkpoint had its name when the last one died: nothing was left to do but to forget the job
    assert code == 2 and "cut: already exists" in log.read_text()
    assert contents(work / "cut") == contents(work / "whole")
    assert {entry.name for entry in work.iterdir()} == {"dense", "text.txt", "whole", "cut"}
