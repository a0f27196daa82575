"""Memory and time of plan, compress and export against the number of blocks, each in a process of its own.

Random llamas in bfloat16, a shard per block; random tokens as calibration: memory and time do not depend on what either
holds. Memory is that of one block, so it should not grow with the blocks; time should grow in proportion:

    python benchmarks/memory_of_one_block.py
    python benchmarks/memory_of_one_block.py --max-memory 900MB

The shape of a 7B model, of which two lengths tell what a block costs:

    python benchmarks/memory_of_one_block.py --width 4096 --inner 11008 --head-size 128 --vocabulary 32000 \\
        --blocks 1 2 --windows 8 --window-length 512 --method svd-llm --max-memory 8GB

--arithmetic prints the terms of the forecast for a shape and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FULL = 32  # blocks of a 7B model, which the last column is extrapolated to


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        blocks: of the model.
        weights: bytes of its files.
        plan: of `plan`: peak bytes and CPU seconds.
        memory: of `compress`, see its --json.
        seconds: wall-clock and CPU, of `compress`.
        export: of `export` to GGUF: peak bytes and CPU seconds.
    """

    blocks: int
    weights: int
    plan: dict[str, Any]
    memory: dict[str, Any]
    seconds: float
    cpu_seconds: float
    export: dict[str, Any]

    def line(self) -> str:
        """For people."""
        peak, forecast = self.memory["peak_bytes"], self.memory["forecast_bytes"]
        return (
            f"{self.blocks:6d}  {self.weights / 1e6:10.0f}  {self.memory['activations']:>11s}  {forecast / 1e6:8.0f}  "
            f"{peak / 1e6:8.0f}  {forecast / peak:5.2f}  {self.memory['scratch_bytes'] / 1e6:7.0f}  "
            f"{self.seconds:7.1f}  {self.cpu_seconds:7.1f}  "
            f"{self.plan['peak_bytes'] / 1e6:8.0f}  {self.plan['cpu_seconds']:7.1f}  "
            f"{self.export['peak_bytes'] / 1e6:9.0f}  {self.export['cpu_seconds']:8.1f}"
        )


HEADER = (
    "blocks  weights MB  activations  forecast      peak  ratio  scratch  seconds    CPU s  "
    "plan  MB    CPU s  export MB     CPU s"
)


def main() -> None:
    """Print a line per number of blocks, then what a block costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--inner", type=int, default=1376, help="features between gate, up and down")
    parser.add_argument("--head-size", type=int, default=64, help="features of an attention head")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--window-length", type=int, default=256)
    parser.add_argument("--gradient-windows", type=int, default=4)
    parser.add_argument("--method", default="loss-aware")
    parser.add_argument("--retention", type=float, default=0.6)
    parser.add_argument("--held-out", type=int, default=0, help="windows, for --arithmetic")
    parser.add_argument("--max-memory")
    parser.add_argument("--gguf-type", default="q8_0")
    parser.add_argument("--arithmetic", action="store_true")
    options = parser.parse_args()
    if options.arithmetic:
        for blocks in options.blocks:
            print(*arithmetic(blocks, options), sep="\n")
        return
    rows = []
    print(HEADER, flush=True)
    for blocks in options.blocks:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(Path(folder), blocks, options))
        print(rows[-1].line(), flush=True)
    for line in per_block(rows):
        print(line)


def arithmetic(blocks: int, options: argparse.Namespace) -> list[str]:
    """The forecast of a llama of this shape, without what Python and its libraries take, and without a margin."""
    from lowrank_export.converter.core.recipe import Recipe
    from lowrank_export.converter.families.table import FAMILIES
    from lowrank_export.converter.methods import METHODS
    from lowrank_export.converter.planning.host_forecast import host_forecast
    from lowrank_export.converter.planning.memory_forecast import GPU_HOLDINGS, forecast
    from lowrank_export.converter.planning.model_shape import ModelShape, WindowSizes

    width, inner, family = options.width, options.inner, FAMILIES["llama"]
    wide = ("mlp.gate_proj", "mlp.up_proj")
    shape = ModelShape(
        blocks=blocks,
        hidden=width,
        vocabulary=options.vocabulary,
        inputs={group.name: inner if group.linears == ("mlp.down_proj",) else width for group in family.groups},
        outputs={name: inner if name in wide else width for name in family.linears},
        groups={group.name: group.linears for group in family.groups},
        block_parameters=4 * width * width + 3 * width * inner,
        largest_other=options.vocabulary * width,
        other_parameters=2 * options.vocabulary * width,
        weight_bytes=4,
        bfloat16=False,
    )
    recipe = Recipe(model="-", method=options.method, gradient_windows=options.gradient_windows)
    chunk = max(1, 4096 // options.window_length)
    windows = WindowSizes(options.windows, options.held_out, options.window_length, chunk)
    lines = []
    for holding in GPU_HOLDINGS:
        found = forecast(recipe, METHODS[options.method], shape, windows, holding)
        host = max(host_forecast(shape, windows, found.stages, holding).values())
        stages = ", ".join(f"{stage} {bytes / 1e9:.2f}" for stage, bytes in found.memory.items())
        beside = f"disk {found.disk / 1e9:.2f}, beside a GPU {host / 1e9:.2f}"
        lines.append(f"{blocks} blocks, activations {holding}, GB: {stages}; {beside}")
    return lines


def measure(folder: Path, blocks: int, options: argparse.Namespace) -> Row:
    """Build a model, compress it, export it."""
    build(folder / "dense", blocks, options)
    shape = (options.windows, options.window_length)
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, options.vocabulary, shape, dtype=np.int32))
    recipe = ["--model", str(folder / "dense"), "--calibration", str(folder / "tokens.npy")]
    recipe += ["--method", options.method, "--retention", str(options.retention)]
    recipe += ["--gradient-windows", str(options.gradient_windows)]
    recipe += ["--max-memory", options.max_memory] if options.max_memory else []
    planned = run("plan", *recipe)
    started = time.perf_counter()
    done = run("compress", *recipe, "--out", str(folder / "factored"))
    seconds = time.perf_counter() - started
    target = ["--format", "gguf", "--gguf-type", options.gguf_type, "--out", str(folder / "gguf")]
    exported = run("export", str(folder / "factored"), *target)
    return Row(
        blocks=blocks,
        weights=sum(file.stat().st_size for file in (folder / "dense").glob("*.safetensors")),
        plan=planned["process"],
        memory=done["memory"],
        seconds=seconds,
        cpu_seconds=done["process"]["cpu_seconds"],
        export=exported["process"],
    )


def build(path: Path, blocks: int, options: argparse.Namespace) -> None:
    """Make the model in a process of its own: this one stays small."""
    shape = (options.width, options.inner, options.head_size)
    sizes = (*shape, blocks, options.vocabulary, max(1024, options.window_length))
    code = f"from pathlib import Path; from random_llama import *; save_sharded_llama(Path({str(path)!r}), *{sizes})"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)


def run(*arguments: str) -> dict[str, Any]:
    """A command's JSON document."""
    command = [sys.executable, "-m", "lowrank_export", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1])
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def per_block(rows: list[Row]) -> list[str]:
    """What a block more costs, from the smallest and the largest model, and what 32 blocks would take."""
    first, last = rows[0], rows[-1]
    more = last.blocks - first.blocks
    if not more:
        return []
    memory = (last.memory["peak_bytes"] - first.memory["peak_bytes"]) / more
    seconds, cpu = (last.seconds - first.seconds) / more, (last.cpu_seconds - first.cpu_seconds) / more
    whole = last.cpu_seconds + cpu * (FULL - last.blocks)
    return [
        f"a block more: {memory / 1e6:+.1f} MB of memory, {seconds:.1f} s, {cpu:.1f} CPU s",
        f"extrapolated to {FULL} blocks: {(last.memory['peak_bytes'] + memory * (FULL - last.blocks)) / 1e6:.0f} MB, "
        f"{whole:.0f} CPU s",
    ]


if __name__ == "__main__":
    main()
