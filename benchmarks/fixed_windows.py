"""Perplexity, CPU seconds and peak memory of compressing the demo model on fixed windows, beside published code.

Needs the folder named by LOWRANK_DATA. Each compression runs in a process of its own, one after the other:

    python benchmarks/fixed_windows.py                       # every row of the table in docs/methods.md
    python benchmarks/fixed_windows.py --only adasvd --retention 0.6
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

RETENTIONS = (0.8, 0.6, 0.4)

ONE_SIDED = ["--method", "loss-aware", "--truncation", "one-sided"]
PIVOT = ["--method", "loss-aware", "--layout", "pivot"]
MORE_TEXT = ["--calibration", "@/wiki.valid.raw", "--held-out", "4", "--windows"]
REFINED_LONG = [*PIVOT, "--refine-epochs", "3", "--gradient-windows", "64", *MORE_TEXT, "192"]

# Row name -> options of `lowrank-export compress`; "@" stands for the data folder. Rank multiple 1: the published codes
# round ranks down to whole numbers.
ROWS: dict[str, list[str]] = {
    "svd": ["--method", "svd"],
    "fwsvd": ["--method", "fwsvd"],
    "asvd": ["--method", "asvd"],
    "asvd-stable-rank": ["--method", "asvd-stable-rank"],
    "svd-llm": ["--method", "svd-llm"],
    "svd-llm-u": ["--method", "svd-llm-u", "--update-calibration", "@/smollm2_update_16x512.npy"],
    "svd-llm-v2": ["--method", "svd-llm-v2"],
    "pifa-m": ["--method", "pifa-m"],
    "saes": ["--method", "saes"],
    "lc-svd": ["--method", "lc-svd"],
    "lc-svd, not refined": ["--method", "lc-svd", "--refine", "none"],
    "whitening on X'": [*ONE_SIDED, "--allocation", "uniform", "--alpha", "0"],
    "+ two-sided": ["--method", "loss-aware", "--allocation", "uniform", "--alpha", "0"],
    "+ threshold": ["--method", "loss-aware", "--alpha", "0"],
    "loss-aware": ["--method", "loss-aware"],
    "loss-aware, uniform ranks": ["--method", "loss-aware", "--allocation", "uniform"],
    "loss-aware, one-sided": ONE_SIDED,
    "loss-aware, 8 gradient windows": ["--method", "loss-aware", "--gradient-windows", "8"],
    "loss-aware, alpha 0.25": ["--method", "loss-aware", "--alpha", "0.25"],
    "loss-aware, 16 gradient windows": ["--method", "loss-aware", "--gradient-windows", "16"],
    "loss-aware, pivot": PIVOT,
    "loss-aware, pivot, 16 gradient windows": [*PIVOT, "--gradient-windows", "16"],
    "loss-aware, pivot, block": [*PIVOT, "--refine", "block", "--refine-epochs", "10"],
    "loss-aware, pivot, block, 128 windows": [*PIVOT, "--refine", "block", "--refine-epochs", "3", *MORE_TEXT, "128"],
    "loss-aware, pivot, block, 192 windows": [*REFINED_LONG, "--refine", "block"],
    "loss-aware, pivot, model, 192 windows": [*REFINED_LONG, "--refine", "model"],
    "loss-aware, pivot, model": [*PIVOT, "--refine", "model"],
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
                f"C4 {result['c4']:8.2f} +- {result['c4_se']:.2f}  "
                f"CPU {result['cpu_seconds']:4.0f} s  wall {result['wall_seconds']:4.0f} s  "
                f"peak {result['peak_gb']:.2f} GB",
                flush=True,
            )
            results.append(result)
    print(PUBLISHED_COST)
    print(json.dumps(results))


def measure(row: str, retention: float, model: str, data: Path) -> dict[str, object]:
    """Compress in a child process, then score its checkpoint on both evaluation texts."""
    from lowrank_export.runtime_tests.child import run_child

    options = [f"{float(o[1:-1]) * retention}" if o.startswith("{") else o for o in ROWS[row]]
    options = [f"{data}{o[1:]}" if o.startswith("@") else o for o in options]
    if "loss-aware" not in options:  # the published codes' own precision
        options += ["--activations", "float32"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "checkpoint"
        command = ["compress", "--model", model, "--out", str(out), "--rank-multiple", "1"]
        command += ["--calibration", str(data / "smollm2_calibration_32x1024.npy")]
        _, cost = run_child([*command, "--retention", str(retention), *options], Path(folder) / "log")
        score = perplexities_of(out, data)
    return {
        "row": row,
        "retention": retention,
        **score,
        "cpu_seconds": cost.cpu_seconds,
        "wall_seconds": cost.wall_seconds,
        "peak_gb": cost.peak_bytes / 1e9,
    }


def perplexities_of(checkpoint: Path, data: Path) -> dict[str, float]:
    """PPL and its standard error over the WikiText-2 windows and over as many of C4."""
    import numpy as np
    from transformers import AutoTokenizer

    from lowrank_export.converter.statistics.calibration import draw_windows, tokenize
    from lowrank_export.converter.texts.corpus import read_text
    from lowrank_export.runtime_tests.backends.torch_reference import open_torch
    from lowrank_export.runtime_tests.metrics.perplexity import perplexity, token_losses

    wikitext = np.load(data / "smollm2_evaluation_12x1024.npy", allow_pickle=False)
    c4 = read_text(f"{data / 'c4_sample.jsonl'}#prefix+gold_completion", "evaluation")
    tokens = tokenize(AutoTokenizer.from_pretrained(checkpoint), c4)
    texts = {"ppl": wikitext, "c4": draw_windows(tokens, *wikitext.shape, seed=0, where="C4")}
    backend = open_torch(checkpoint, device="cpu", dtype="float32", threads=os.cpu_count() or 1)
    result = {}
    try:
        for name, windows in texts.items():
            found = perplexity(np.concatenate([token_losses(backend.window_logits(w)[:-1], w[1:]) for w in windows]))
            result |= {name: found.value, f"{name}_se": found.standard_error}
    finally:
        backend.close()
    return result


if __name__ == "__main__":
    main()
