"""What each process of a divided test runs: several compressions in one process group.

    torchrun --nproc-per-node N divided.py JOBS [DEVICE]    # or forked, see conftest.py

JOBS is a JSON file: [[recipe values, output folder], ...]. DEVICE is "cpu", or "cuda": a stand-in with N GPUs.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

from cuda_stand_in import StandIn

from lowrank_export.converter.core.recipe import make_recipe
from lowrank_export.converter.distributed.joining import joined
from lowrank_export.converter.pipeline import compress


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    device = (sys.argv[2:] or ["cpu"])[0]
    gpus = StandIn(count=int(os.environ["WORLD_SIZE"])) if device == "cuda" else nullcontext()
    with gpus, joined(device, threads=1) as workers:
        for values, out in jobs:
            done = compress(make_recipe(values, "test"), Path(out), device=device, workers=workers)
            plans = workers.gathered(done.plan)
            assert all(plan == plans[0] for plan in plans)
    # a thread of the group that outlives it takes the interpreter down with it now and then
    assert not [name for name in thread_names() if "gloo" in name]


def thread_names() -> list[str]:
    """Of this process's threads, as the system knows them; none where it does not say (not Linux)."""
    return [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]


if __name__ == "__main__":
    main()
