"""Load time and memory of a runtime, in a process of its own; and what the machine's memory can deliver.

`python -m lowrank_export.runtime_tests.metrics.footprint` is that process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ...converter.core.errors import ResourceError
from ...converter.core.signals import signal_words
from ...exporters.artifact import TensorRecord
from ..environment import process_cost

EMBEDDINGS = ("token_embd", "embed_tokens")
HEADS = ("output.weight", "lm_head")
STREAM_BYTES = 2**28  # well beyond any cache


@dataclass(frozen=True)
class Footprint:
    """One model in one runtime.

    Attributes:
        load_seconds: from the path to an open backend; the file may be in the system's cache.
        start_bytes: resident memory before, with Python and the libraries of this package.
        peak_bytes: largest resident memory of the process, after a prompt and a few single tokens; no GPU's.
    """

    load_seconds: float
    start_bytes: int
    peak_bytes: int


def measure_footprint(
    path: Path, name: str, *, threads: int, context: int, prompt_tokens: int, device: str = "cpu"
) -> Footprint:
    """Load an artifact into a runtime, feed a prompt and eight tokens, in a new process.

    Raises:
        ResourceError: that process ended otherwise, most likely for want of memory.
    """
    task = {"path": str(path), "name": name, "threads": threads, "context": context, "prompt_tokens": prompt_tokens}
    task["device"] = device
    command = [sys.executable, "-P", "-m", __spec__.name, json.dumps(task)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        how = f"its process was ended: {signal_words(-done.returncode)}" if done.returncode < 0 else lines[-1]
        raise ResourceError(f"{path}: measuring the memory of {name} failed: {how}")
    return Footprint(**json.loads(done.stdout.splitlines()[-1]))


def bytes_per_token(tensors: Iterable[TensorRecord]) -> int:
    """Bytes of weights that decoding one token reads: all, but for an embedding that is no head too."""
    listed = list(tensors)
    untied = any(head in tensor.name for tensor in listed for head in HEADS)
    return sum(tensor.bytes for tensor in listed if not (untied and any(word in tensor.name for word in EMBEDDINGS)))


def memory_bandwidth(threads: int, rounds: int = 5) -> float:
    """Bytes per second that `threads` threads read from memory: the best of a few sums over 256 MiB."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        data = torch.ones(STREAM_BYTES // 4)
        seconds = []
        for _ in range(rounds):
            begin = perf_counter()
            data.sum()
            seconds.append(perf_counter() - begin)
    finally:
        torch.set_num_threads(before)
    return STREAM_BYTES / min(seconds)


def _measure_here(path: str, name: str, threads: int, context: int, prompt_tokens: int, device: str) -> Footprint:
    from ..backends.open import open_backend

    start = int(process_cost()["peak_bytes"])
    begin = perf_counter()
    options: dict[str, Any] = {"threads": threads, "context": context, "exact": False, "device": device, "tried": True}
    backend = open_backend(Path(path), name, **options)
    loaded = perf_counter() - begin
    try:
        backend.reset()
        tokens = np.arange(prompt_tokens + 8, dtype=np.int32) % 64  # nothing but padding would end GenAI's process
        backend.feed(tokens[:prompt_tokens])
        for token in tokens[prompt_tokens:]:
            backend.feed(np.array([token]))
    finally:
        backend.close()
    return Footprint(loaded, start, int(process_cost()["peak_bytes"]))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(_measure_here(**json.loads(sys.argv[1])))) + "\n")
