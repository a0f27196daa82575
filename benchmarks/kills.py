"""Kill a compression at random moments, run it again, and compare the bytes with those of a job that was left alone.

    python benchmarks/kills.py                                          # the demo model, 20 kills, some minutes
    python benchmarks/kills.py --method loss-aware --windows 8 --kills 5

A moment is drawn in seconds of processor time, so other work on the machine does not change where kills fall. Exit code
1 if a checkpoint differs. `tests/test_kill.py` does the same with a tiny model and every stage.
"""

from __future__ import annotations

import argparse
import math
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil


def main() -> int:
    """Kill, go on, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--method", default="svd-llm")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--window-length", type=int, default=128)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    command = [sys.executable, "-m", "lowrank_export", "compress", "--model", asked.model, "--method", asked.method]
    command += ["--windows", str(asked.windows), "--window-length", str(asked.window_length), "--out"]
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), command, asked.kills, random.Random(asked.seed))  # noqa: S311


def run(folder: Path, command: list[str], kills: int, chance: random.Random) -> int:
    """Print a line per kill; 1 if a finished checkpoint is not that of a job left alone."""
    subprocess.run([*command, str(folder / "whole")], check=True, capture_output=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    whole, done, finished, same = used.ru_utime + used.ru_stime, 0, 0, True
    print(f"left alone: {whole:.0f} CPU seconds", flush=True)
    cut = folder / "cut"
    while done < kills or not cut.exists():
        if cut.exists():
            same, finished = same and contents(cut) == contents(folder / "whole"), finished + 1
            shutil.rmtree(cut)
        moment = chance.uniform(0.3, 1) * whole if done < kills else math.inf
        with subprocess.Popen([*command, str(cut)], stderr=subprocess.DEVNULL) as process:
            if reaches(process, moment):
                process.kill()
                done += 1
                blocks = len(list((folder / ".cut.unfinished").glob("block-*")))
                print(f"kill {done} after {moment:.1f} CPU seconds, {blocks} blocks kept", flush=True)
        if process.returncode > 0:
            raise SystemExit(f"{' '.join(process.args)}: exit code {process.returncode}")
    same = same and contents(cut) == contents(folder / "whole")
    left = sorted(entry.name for entry in folder.iterdir())
    print(f"{done} kills, finished {finished + 1} times, {'the same bytes' if same else 'OTHER BYTES'}; left: {left}")
    return 0 if same and left == ["cut", "whole"] else 1


def reaches(process: subprocess.Popen[bytes], moment: float) -> bool:
    """Wait until a process has used that many seconds of processor time: False if it ended before."""
    clock = psutil.Process(process.pid)
    while process.poll() is None:
        if sum(clock.cpu_times()[:4]) >= moment:  # user, system, and those of children that ended
            return True
        time.sleep(0.01)
    return False


def contents(folder: Path) -> dict[str, bytes]:
    """File name -> bytes."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


if __name__ == "__main__":
    sys.exit(main())
