"""Perplexity, CPU seconds and peak memory of compressing the demo model on fixed windows, beside published code.

Needs the folder named by LOWRANK_DATA. Each compression runs in a process of its own, one after the other:

    python benchmarks/fixed_windows.py                       # every row of the table in docs/methods.md
    python benchmarks/fixed_windows.py --only adasvd --retention 0.6
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RETENTIONS = (0.8, 0.6, 0.4)

# Row name -> options of `lowrank-export compress`; "@" stands for the data folder. Rank multiple 1: the published codes
# round ranks down to whole numbers.
ROWS: dict[str, list[str]] = {
    "svd": ["--method", "svd"],
    "fwsvd": ["--method", "fwsvd"],
    "asvd-stable-rank": ["--method", "asvd-stable-rank"],
    "svd-llm": ["--method", "svd-llm"],
    "svd-llm-u": ["--method", "svd-llm-u", "--update-calibration", "@/smollm2_update_16x512.npy"],
    "svd-llm-v2": ["--method", "svd-llm-v2"],
    "pifa-m": ["--method", "pifa-m"],
    "saes": ["--method", "saes"],
    "adasvd": ["--method", "adasvd"],
    "adasvd, 0 iterations": ["--method", "adasvd", "--iterations", "0"],
    "adasvd, 3 iterations": ["--method", "adasvd", "--iterations", "3"],
    "adasvd, stack-of-batch 8": ["--method", "adasvd", "--calibration-reduction", "stack-of-batch", "--buckets", "8"],
    "adasvd, cosine": ["--method", "adasvd", "--similarity", "cosine"],
    "adasvd, minimum 0.25 of target": ["--method", "adasvd", "--min-retention", "{0.25}"],
    "adasvd, minimum 0.75 of target": ["--method", "adasvd", "--min-retention", "{0.75}"],
    "adasvd, uniform ranks": ["--method", "adasvd", "--min-retention", "{1}"],
}

# What the published code scores on these windows: row, retention -> perplexity; CPU seconds with statistics, peak GB.
PUBLISHED = {
    ("asvd-stable-rank", 0.8): 479_000.0,
    ("svd-llm", 0.8): 79.02,
    ("svd-llm", 0.6): 267.28,
    ("svd-llm", 0.4): 1304.5,
    ("svd-llm-u", 0.8): 75.4,
    ("svd-llm-u", 0.6): 203.5,
    ("svd-llm-u", 0.4): 1078.0,
}
PUBLISHED_COST = "published SVD-LLM: 215 + 31 CPU seconds, 2.4 to 2.7 GB"


def main() -> None:
    """Run the chosen rows and print one line each, and a JSON document at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="row name; repeatable")
    parser.add_argument("--retention", action="append", type=float)
    parser.add_argument("--model", default="demo")
    arguments = parser.parse_args()
    data = Path(os.environ["LOWRANK_DATA"])
    results = []
    for row in arguments.only or ROWS:
        for retention in arguments.retention or RETENTIONS:
            result = measure(row, retention, arguments.model, data)
            published = PUBLISHED.get((row, retention))
            beside = f"  published {published:9.2f}" if published else ""
            print(
                f"{row:34s} {retention:.1f}  PPL {result['ppl']:10.2f} +- {result['ppl_se']:.2f}{beside}  "
                f"CPU {result['cpu_seconds']:4.0f} s  wall {result['wall_seconds']:4.0f} s  "
                f"peak {result['peak_gb']:.2f} GB",
                flush=True,
            )
            results.append(result)
    print(PUBLISHED_COST)
    print(json.dumps(results))


def measure(row: str, retention: float, model: str, data: Path) -> dict[str, object]:
    """Compress in a child process, then score its checkpoint on the evaluation windows."""
    options = [f"{float(o[1:-1]) * retention}" if o.startswith("{") else o for o in ROWS[row]]
    options = [f"{data}{o[1:]}" if o.startswith("@") else o for o in options]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "checkpoint"
        command = [sys.executable, "-m", "lowrank_export", "compress", "--model", model, "--out", str(out)]
        command += ["--calibration", str(data / "smollm2_calibration_32x1024.npy"), "--rank-multiple", "1"]
        command += ["--retention", str(retention), *options]
        started = time.perf_counter()
        with (Path(folder) / "log").open("w+", encoding="utf-8") as log:
            child = subprocess.Popen(command, stderr=log)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
            if status != 0:
                log.seek(0)
                raise SystemExit(f"{row}, retention {retention}: {log.read().strip().splitlines()[-1]}")
        wall = time.perf_counter() - started
        score = perplexity_of(out, data / "smollm2_evaluation_12x1024.npy")
    return {
        "row": row,
        "retention": retention,
        **score,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "wall_seconds": wall,
        "peak_gb": usage.ru_maxrss / 1e6,
    }


def perplexity_of(checkpoint: Path, windows: Path) -> dict[str, float]:
    """PPL and its standard error over all windows."""
    import numpy as np

    from lowrank_export.runtime_tests.backends.torch_reference import open_torch
    from lowrank_export.runtime_tests.perplexity import perplexity, token_losses

    backend = open_torch(checkpoint, device="cpu", dtype="float32", threads=os.cpu_count() or 1)
    try:
        losses = [token_losses(backend.window_logits(w), w) for w in np.load(windows, allow_pickle=False)]
    finally:
        backend.close()
    found = perplexity(np.concatenate(losses))
    return {"ppl": found.value, "ppl_se": found.standard_error}


if __name__ == "__main__":
    main()
