"""Seconds of a compression divided among processes of one thread each, and where they go.

A random llama and the demo model, compressed by one process and by several; each count in processes of its own. For
every process: seconds in the fits of linears, in exchanges with the others (waiting for them included), in writing, and
the rest, which is reading, forwards and moments. Some minutes:

    python benchmarks/rank_scaling.py
    python benchmarks/rank_scaling.py --counts 1 2 4 --methods loss-aware --models random --width 2048
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from random_llama import save_random_llama

from lowrank_export.converter import block_fit
from lowrank_export.converter.checkpoint.writer import CheckpointWriter
from lowrank_export.converter.core.recipe import Recipe
from lowrank_export.converter.distributed.joining import joined
from lowrank_export.converter.distributed.workers import Workers
from lowrank_export.converter.journal import Journal
from lowrank_export.converter.machine.memory import peak_memory
from lowrank_export.converter.model.loading import quiet_transformers
from lowrank_export.converter.pipeline import compress
from lowrank_export.converter.statistics import sensitivity
from lowrank_export.converter.statistics.store import Statistics

FITS = (
    (block_fit, ("fit_linear", "truncate", "group_metric", "group_whitener")),
    (sensitivity, ("spectrum", "whiten")),
)
EXCHANGES = ((Workers, ("all_reduce_", "gathered", "broadcast_object", "sent", "broadcast_")),)
WRITES = ((CheckpointWriter, ("write_shard", "finish")), (Journal, ("save_block",)), (Statistics, ("save",)))


def main() -> None:
    """One table per model and method; with --work, one process of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2], help="of processes")
    parser.add_argument("--models", nargs="+", choices=["random", "demo"], default=["random", "demo"])
    parser.add_argument("--methods", nargs="+", default=["adasvd", "loss-aware"])
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--window-length", type=int, default=512)
    parser.add_argument("--width", type=int, default=1024, help="of the random llama")
    parser.add_argument("--blocks", type=int, default=4, help="of the random llama")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        work(options.work)
        return
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            source = model
            if model == "random":
                source = str(Path(folder) / "random")
                with quiet_transformers():
                    save_random_llama(Path(source), options.width, options.blocks, options.window_length)
            for method in options.methods:
                recipe = Recipe(
                    model=source, method=method, windows=options.windows, window_length=options.window_length
                )
                runs = [run(recipe, count, Path(folder) / f"{model}-{method}-{count}") for count in options.counts]
                print("\n".join(table(f"{model}, {method}", runs)), flush=True)


def run(recipe: Recipe, count: int, out: Path) -> list[dict[str, float]]:
    """Compress with a number of processes; what each of them measured."""
    job = {"recipe": recipe.model_dump(mode="json"), "out": str(out)}
    task = out.with_suffix(".json")
    task.write_text(json.dumps(job), encoding="utf-8")
    command = [str(Path(__file__).resolve()), "--work", str(task)]
    if count > 1:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *command]
    subprocess.run([sys.executable, *command], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found = [out.with_suffix(f".{index}.json") for index in range(count)]
    return [json.loads(path.read_text(encoding="utf-8")) for path in found]


def work(task: Path) -> None:
    """One process: compress, and write down where its seconds went."""
    job = json.loads(task.read_text(encoding="utf-8"))
    spent: dict[str, float] = defaultdict(float)
    for part, places in (("fits", FITS), ("exchanges", EXCHANGES), ("writing", WRITES)):
        for place, names in places:
            for name in names:
                setattr(place, name, timed(getattr(place, name), spent, part))
    with joined("cpu", threads=1) as workers:
        values = job["recipe"]
        recipe = Recipe(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
        started = time.perf_counter()
        compress(recipe, Path(job["out"]), device="cpu", workers=workers)
        seconds = time.perf_counter() - started
    document = {**spent, "seconds": seconds, "peak": peak_memory()}
    task.with_suffix(f".{workers.index}.json").write_text(json.dumps(document), encoding="utf-8")


def timed(function: Callable[..., Any], spent: dict[str, float], part: str) -> Callable[..., Any]:
    """The function, adding the seconds of its outermost calls to `spent`; one part within another counts for that."""

    @functools.wraps(function)
    def measured(*arguments: Any, **options: Any) -> Any:
        if spent["inside"]:
            return function(*arguments, **options)
        spent["inside"], started = 1, time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            spent[part] += time.perf_counter() - started
            spent["inside"] = 0

    return measured


def table(title: str, runs: Sequence[list[dict[str, float]]]) -> list[str]:
    """A line per process."""
    columns = ("processes", "seconds", "speed-up", "process", "fits", "exchanges", "writing", "the rest", "peak MB")
    lines = [title, f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    first = max(each["seconds"] for each in runs[0])
    for found in runs:
        seconds = max(each["seconds"] for each in found)
        for index, each in enumerate(found):
            parts = [each.get(part, 0.0) for part in ("fits", "exchanges", "writing")]
            rest = each["seconds"] - sum(parts)
            head = f"| {len(found)} | {seconds:.1f} | {first / seconds:.2f}x |" if index == 0 else "| | | |"
            cells = " | ".join(f"{part:.1f}" for part in [*parts, rest])
            lines.append(f"{head} {index} | {cells} | {each['peak'] / 1e6:.0f} |")
    return lines


if __name__ == "__main__":
    main()
