"""Kill a compression at random moments, run it again, and compare the bytes with those of a job that was left alone.

    python benchmarks/kills.py                                          # the demo model, 20 kills, some minutes
    python benchmarks/kills.py --method loss-aware --windows 8 --kills 5
    python benchmarks/kills.py --method loss-aware --layout pivot --refine model --refine-epochs 3

Options that it does not know are those of `compress`. A moment is drawn from the processor time that the job has left,
so other work on the machine changes nothing. Exit code 1 if a checkpoint differs. `tests/test_kill.py` kills a job at
every file it writes.
"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
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
    asked, others = parser.parse_known_args()
    command = [sys.executable, "-m", "lowrank_export", "compress", "--model", asked.model, "--method", asked.method]
    command += ["--windows", str(asked.windows), "--window-length", str(asked.window_length), *others, "--out"]
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), command, asked.kills, random.Random(asked.seed))  # noqa: S311


def run(folder: Path, command: list[str], kills: int, chance: random.Random) -> int:
    """Print a line per kill and per finished job; 1 if a checkpoint is not that of a job left alone."""
    alone, cut = Alone.of(command, folder / "whole"), folder / "cut"
    print(f"left alone: {alone.seconds:.0f} CPU seconds, {alone.begun:.0f} before its first block", flush=True)
    done, same = 0, True
    while done < kills or not cut.exists():
        if cut.exists():
            shutil.rmtree(cut)
        share = 1 - len(blocks(cut)) / alone.blocks
        left = alone.begun + share * (alone.seconds - alone.begun)
        moment = chance.uniform(0.3, 1.2) * left if done < kills else math.inf
        with subprocess.Popen([*command, str(cut)], stderr=subprocess.DEVNULL) as process:
            while (used := seconds(process)) is not None:
                if used >= moment:
                    process.kill()
                    done += 1
                    print(f"kill {done} after {used:.1f} CPU seconds, {len(blocks(cut))} blocks kept", flush=True)
                    break
                time.sleep(0.01)
        if process.returncode > 0:
            raise SystemExit(f"{' '.join(process.args)}: exit code {process.returncode}")
        if cut.exists():
            equal = contents(cut) == contents(folder / "whole")
            same = same and equal
            print(f"finished: {'the same bytes' if equal else 'OTHER BYTES'}", flush=True)
    left_over = sorted(entry.name for entry in folder.iterdir())
    print(f"{done} kills, {'the same bytes' if same else 'OTHER BYTES'}; left: {left_over}")
    return 0 if same and left_over == ["cut", "whole"] else 1


@dataclass(frozen=True)
class Alone:
    """What a job takes that nobody kills: seconds of processor time, those before its first block, and its blocks."""

    seconds: float
    begun: float
    blocks: int

    @classmethod
    def of(cls, command: list[str], out: Path) -> Alone:
        """Run it."""
        whole, begun, count = 0.0, None, 0
        with subprocess.Popen([*command, str(out)], stderr=subprocess.DEVNULL) as process:
            while (used := seconds(process)) is not None:
                whole, count = used, max(count, len(blocks(out)))
                begun = used if begun is None and count else begun
                time.sleep(0.01)
        if process.returncode or begun is None:
            raise SystemExit(f"{' '.join(process.args)}: exit code {process.returncode}")
        return cls(whole, begun, count)


def seconds(process: subprocess.Popen[bytes]) -> float | None:
    """Processor time of a process so far, its children's that ended included; None if it has ended itself."""
    return None if process.poll() is not None else float(sum(psutil.Process(process.pid).cpu_times()[:4]))


def blocks(out: Path) -> list[Path]:
    """The finished blocks of an unfinished job."""
    return list(out.with_name(f".{out.name}.unfinished").glob("block-*"))


def contents(folder: Path) -> dict[str, bytes]:
    """File name -> bytes."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


if __name__ == "__main__":
    sys.exit(main())
