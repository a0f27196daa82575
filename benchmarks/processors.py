"""The same compression as an older processor would compute it: how far its factors are from those of this one.

Libraries choose their kernels by processor, and other kernels sum in another order. Environment variables make them
choose as on one with AVX2, or with SSE alone. Each job runs in a process of its own; printed are the relative
differences of the products of factors, and the perplexity of each.

python benchmarks/processors.py --model demo --method svd-llm --windows 8
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

import lowrank_export
from lowrank_export.runtime_tests.backends.torch_reference import open_torch
from lowrank_export.runtime_tests.evaluation import Evaluation, load_windows
from lowrank_export.runtime_tests.metrics.perplexity import token_losses

PROCESSORS: dict[str, dict[str, str]] = {
    "this": {},
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_CBWR": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "SSE": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OPENBLAS_CORETYPE": "Nehalem",
    },
}


def main() -> None:
    """A line per processor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--method", default="svd-llm")
    parser.add_argument("--retention", type=float, default=0.6)
    parser.add_argument("--windows", type=int, default=8)
    asked = parser.parse_args()
    options = [f"--{name}={value}" for name, value in vars(asked).items()]
    with TemporaryDirectory() as folder:
        for name, variables in PROCESSORS.items():
            out = Path(folder) / name
            command = [sys.executable, "-m", "lowrank_export", "compress", *options, "--window-length=512"]
            subprocess.run(
                [*command, "--activations=float32", f"--out={out}"], check=True, env={**os.environ, **variables}
            )
        first = Path(folder) / "this"
        print(f"{'':6} median     largest    perplexity", flush=True)
        for name in PROCESSORS:
            found = differences(first, Path(folder) / name)
            print(
                f"{name:6} {median(found):.1e}    {max(found):.1e}    {perplexity(Path(folder) / name):.5f}", flush=True
            )


def differences(a: Path, b: Path) -> list[float]:
    """Of every factored linear: the product's difference relative to its size, Frobenius norms."""
    first, second = (dict(lowrank_export.load(path).named_modules()) for path in (a, b))
    found = []
    for name, module in first.items():
        if hasattr(module, "dense_weight"):
            products = [each.dense_weight().detach().double() for each in (module, second[name])]
            found.append(float((products[0] - products[1]).norm() / products[0].norm()))
    return found


def perplexity(checkpoint: Path) -> float:
    """On four windows of 512 tokens that nothing was fitted on."""
    windows = load_windows(Evaluation(windows=4, window_length=512), checkpoint)
    backend = open_torch(checkpoint)
    losses = [token_losses(backend.window_logits(window)[:-1], window[1:]) for window in windows.tokens]
    backend.close()
    return float(np.exp(np.concatenate(losses).mean()))


if __name__ == "__main__":
    main()
