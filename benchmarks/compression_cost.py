"""CPU seconds and peak memory of a compression beside the published procedure, side by side in one run.

The published procedure is the first step of SVD-LLM (ICLR 2025) as its code does it, written out here in plain PyTorch:
whole forwards in float32, a second moment per linear, Cholesky in float64, the full SVD of W S, and the inverse of S.
Its perplexity shows that it is that procedure: the code itself scores 79.02, 267.28 and 1304.5 at 0.8, 0.6 and 0.4.

Needs the folder named by LOWRANK_DATA. Takes about ten minutes:

    python benchmarks/compression_cost.py --retention 0.6
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

METHODS = ("svd-llm", "loss-aware")


def main() -> None:
    """Run each in a process of its own, `--repeats` times, interleaved, and print the medians and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retention", type=float, default=0.6)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--published-into", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", default="demo")
    arguments = parser.parse_args()
    data = Path(os.environ["LOWRANK_DATA"])
    if arguments.published_into is not None:
        _published(arguments.model, arguments.retention, data, arguments.published_into)
        return
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(arguments.repeats):
            result = _run_published(arguments, Path(folder) / f"published-{repeat}.json")
            found.setdefault("published SVD-LLM", []).append(result)
            print(f"published SVD-LLM: PPL {result['ppl']:.2f}", flush=True)
            for method in METHODS:
                found.setdefault(method, []).append(_run_ours(method, arguments, data, Path(folder)))
    base = _median(found["published SVD-LLM"], "cpu_seconds")
    for name, results in found.items():
        cpu, peak = _median(results, "cpu_seconds"), _median(results, "peak_bytes")
        print(f"{name:20s} CPU {cpu:6.1f} s  ratio {cpu / base:.2f}  peak {peak / 1e9:.2f} GB")
    print(json.dumps(found))


def _median(results: list[dict[str, Any]], key: str) -> float:
    values = sorted(float(result[key]) for result in results)
    return values[len(values) // 2]


def _run_published(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    options = ["--model", arguments.model, "--retention", str(arguments.retention), "--published-into", str(out)]
    subprocess.run([sys.executable, __file__, *options], check=True)
    result: dict[str, Any] = json.loads(out.read_text())
    return result


def _run_ours(method: str, arguments: argparse.Namespace, data: Path, folder: Path) -> dict[str, Any]:
    from lowrank_export.runtime_tests.child import run_child

    command = ["compress", "--model", arguments.model, "--method", method, "--retention", str(arguments.retention)]
    command += ["--rank-multiple", "1", "--calibration", str(data / "smollm2_calibration_32x1024.npy")]
    _, cost = run_child([*command, "--out", str(folder / method), "--force"], folder / "log")
    return {"cpu_seconds": cost.cpu_seconds, "wall_seconds": cost.wall_seconds, "peak_bytes": cost.peak_bytes}


def _published(spec: str, retention: float, data: Path, out: Path) -> None:
    """Compress as the published code does, note the cost of this process so far, then score the result."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from lowrank_export.converter.core.progress import SilentProgress
    from lowrank_export.converter.model.source import open_source
    from lowrank_export.runtime_tests.environment import process_cost
    from lowrank_export.runtime_tests.metrics.perplexity import perplexity

    model = AutoModelForCausalLM.from_pretrained(open_source(spec, SilentProgress()).path, dtype=torch.float32)
    linears = {n: m for n, m in model.model.layers.named_modules() if isinstance(m, torch.nn.Linear)}
    windows = torch.from_numpy(np.load(data / "smollm2_calibration_32x1024.npy", allow_pickle=False)).long()
    moments: dict[str, Any] = dict.fromkeys(linears, 0)

    def watch(name: str) -> Any:
        def hook(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].float()
            moments[name] = moments[name] + (x.transpose(1, 2) @ x).sum(dim=0)

        return hook

    with torch.no_grad():
        hooks = [linear.register_forward_pre_hook(watch(name)) for name, linear in linears.items()]
        for window in windows:
            model(input_ids=window[None], use_cache=False)
        for hook in hooks:
            hook.remove()
        for name, linear in linears.items():
            weight = linear.weight
            root = torch.linalg.cholesky(_positive(moments.pop(name).double()))
            inverse = torch.linalg.inv(root).float()
            u, s, vt = torch.linalg.svd(weight @ root.float(), full_matrices=False)
            rank = int(weight.numel() * retention / sum(weight.shape))
            linear.weight.copy_((u[:, :rank] * s[:rank]) @ (vt[:rank] @ inverse))
        cost = process_cost()
        text = torch.from_numpy(np.load(data / "smollm2_evaluation_12x1024.npy", allow_pickle=False)).long()
        losses = [
            torch.nn.functional.cross_entropy(model(input_ids=w[None]).logits[0, :-1], w[1:], reduction="none")
            for w in text
        ]
    score = perplexity(torch.cat(losses).numpy())
    out.write_text(json.dumps({**cost, "ppl": score.value, "ppl_se": score.standard_error}))


def _positive(moment: Any) -> Any:
    """The moment, lifted by its most negative eigenvalue where Cholesky would fail."""
    import torch

    _, failed = torch.linalg.cholesky_ex(moment)
    if not int(failed):
        return moment
    lowest = torch.linalg.eigvalsh(moment)[0]
    return moment + (1e-6 - lowest) * torch.eye(len(moment), dtype=moment.dtype)


if __name__ == "__main__":
    main()
