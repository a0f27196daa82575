"""What a file of a given size costs to make, beside a single retention and beside llama.cpp's own way, in one run.

Every step is a process of its own: CPU seconds of it and its children, and the peak memory of the largest of them.
The main command measures its result too; `plan` with statistics that are kept is the start of a command and the choice
alone. llama.cpp's way is `llama-imatrix`, over as many tokens as gradients are taken of, and `llama-quantize`. On two
cores about half an hour, and some minutes more where llama.cpp's programs are not built yet:

    python benchmarks/size_cost.py --size 79.8MB
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from lowrank_export.converter.core.progress import ConsoleProgress
from lowrank_export.converter.model.source import open_source
from lowrank_export.converter.texts.corpus import read_text
from lowrank_export.exporters.llamacpp.tools import ensure_tools

WINDOWS, LENGTH = 12, 1024  # of which gradients are taken by default
KILOBYTE = 1 if sys.platform == "darwin" else 1024  # ru_maxrss


def main() -> None:
    """Run every step once, and print a row for each as it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--size", default="79.8MB")
    parser.add_argument("--second-size", default="85.8MB")
    parser.add_argument("--type", default="iq4_nl", help="of the single retention, and llama-quantize's")
    options = parser.parse_args()
    tools = ensure_tools(ConsoleProgress())
    print("| step | CPU s | wall s | peak GB |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tool = [sys.executable, "-P", "-m", "lowrank_export"]
        aware = ["--gguf-type", options.type, "--gguf-rounding", "aware"]
        plan = [*tool, "plan", "--model", options.model, "--statistics", str(folder / "statistics"), "--max-bytes"]
        job = [*tool, "--model", options.model, "--format", "gguf"]
        timed("start of a command", [*tool, "doctor"])
        timed(f"plan of {options.size}", [*plan, options.size])
        timed(f"plan of {options.second_size}, statistics kept", [*plan, options.second_size])
        timed(f"job, {options.size}", [*job, "--max-bytes", options.size, "--out", str(folder / "sized")])
        single = ["--method", "loss-aware", "--retention", "0.8", "--out", str(folder / "single"), *aware]
        timed(f"job, loss-aware at 0.8 in {options.type}, aware", [*job, *single])
        text, matrix, plain = (str(folder / name) for name in ("text.txt", "imatrix.gguf", "plain.gguf"))
        Path(text).write_text(read_text("python-docs", "calibration"), encoding="utf-8")
        source = str(open_source(options.model, ConsoleProgress()).path)
        timed("dense export in f16", [*tool, "export", source, "--gguf-type", "f16", "--out", str(folder)])
        whole, threads = str(folder / "model-f16.gguf"), str(os.cpu_count() or 1)
        chunks = ["-c", str(LENGTH), "--chunks", str(WINDOWS), "-t", threads]
        timed("llama-imatrix", [str(tools / "llama-imatrix"), "-m", whole, "-f", text, "-o", matrix, *chunks])
        quantized = [whole, plain, options.type.upper(), threads]
        timed("llama-quantize", [str(tools / "llama-quantize"), "--imatrix", matrix, *quantized])


def timed(name: str, command: Sequence[str]) -> None:
    """Run a command to its end and print what it and its children took.

    Raises:
        SystemExit: it failed.
    """
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode not in (0, 4):  # 4: a gate that failed
            log.seek(0)
            raise SystemExit(f"{name}: exit code {child.returncode}\n{log.read().decode(errors='replace')[-2000:]}")
    seconds, wall = usage.ru_utime + usage.ru_stime, time.perf_counter() - started
    print(f"| {name} | {seconds:.0f} | {wall:.0f} | {usage.ru_maxrss * KILOBYTE / 1e9:.2f} |", flush=True)


if __name__ == "__main__":
    main()
