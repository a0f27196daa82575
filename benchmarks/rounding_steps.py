"""What each step of aware rounding is worth: KL divergence that a storage type costs a checkpoint, step by step.

Rounds the linears of the blocks and nothing else, on moments of the unrounded model, and compares logits in PyTorch:

    python benchmarks/rounding_steps.py CHECKPOINT --type iq4_nl
    python benchmarks/rounding_steps.py DENSE_FOLDER --type iq4_nl --calibration python-docs
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from lowrank_export.converter.checkpoint.lowrank_linear import LowRankLinear
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.progress import ConsoleProgress, SilentProgress
from lowrank_export.converter.model.loading import load, load_tokenizer
from lowrank_export.converter.statistics.input_moments import input_moments
from lowrank_export.converter.texts.corpus import read_text
from lowrank_export.exporters.gguf.rounding import round_nearest, round_rows
from lowrank_export.exporters.llamacpp.runtime import ggml_library
from lowrank_export.exporters.rounding.balancing import balance_factors, refit_u
from lowrank_export.exporters.rounding.calibrated import open_calibrated
from lowrank_export.runtime_tests.metrics.corpora import evaluation_windows

# Step -> how both factors are rounded, whether V and U are balanced first, whether U is refitted
STEPS = {
    "plain": ("nearest", False, False),
    "importance matrix": ("weighted", False, False),
    "balanced": ("nearest", True, False),
    "U refitted": ("nearest", False, True),
    "balanced, U refitted": ("nearest", True, True),
    "fed forward": ("fed", False, False),
    "re-solved, fed forward": ("fed", False, True),
    "balanced, U refitted, GPTQ (aware)": ("fed", True, True),
}
DENSE_STEPS = ("plain", "importance matrix", "fed forward")


def rounded(weights: Tensor, moment: Tensor, how: str, type: str, library: Path) -> Tensor:
    if how == "fed":
        return round_rows(weights, moment, type, library).values
    importance = moment.diagonal() if how == "weighted" else None
    return round_nearest(weights.float(), type, library, importance).values


def rounded_product(linear: nn.Module, moment: Tensor, step: str, type: str, library: Path) -> list[Tensor]:
    """Values of (V, U), or of W alone."""
    how, mixing, solving = STEPS[step]
    if not isinstance(linear, LowRankLinear):
        assert isinstance(linear, nn.Linear)
        return [rounded(linear.weight.data, moment, how, type, library)]
    u, v = linear.lowrank_u.weight.data, linear.lowrank_v.weight.data
    if mixing:
        u, v = balance_factors(u, v, moment, seed=0)
    first = rounded(v, moment, how, type, library)
    latent = first.double() @ moment @ first.double().T
    if solving:
        u, latent = refit_u(u, v, first, moment)
    return [first, rounded(u, latent, how, type, library)]


@torch.no_grad()
def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("checkpoint", type=Path)
    options.add_argument("--type", default="iq4_nl")
    options.add_argument("--calibration", help="text; default: the one the checkpoint records")
    options.add_argument("--calibration-windows", type=int, default=32)
    options.add_argument("--evaluate", default="python-docs")
    options.add_argument("--windows", type=int, default=4)
    options.add_argument("--step", action="append", choices=STEPS)
    asked = options.parse_args()
    progress, model = ConsoleProgress(), load(asked.checkpoint, dtype=torch.float32)
    library = ggml_library(progress)
    blocks, chunks = open_calibrated(CheckpointReader(asked.checkpoint), asked.calibration, "cpu", SilentProgress())
    chunks = list(torch.cat(chunks)[: asked.calibration_windows].split(4))
    moments: dict[str, Tensor] = {}
    for stop in input_moments(blocks, chunks, progress, "moments"):
        shared = stop.moment.float()  # one tensor for all linears of the group
        moments |= {blocks.family.linear_name(stop.block, linear): shared for linear in stop.group.linears}
    text = read_text(asked.evaluate, "evaluation")
    windows = evaluation_windows(load_tokenizer(asked.checkpoint), text, windows=asked.windows, length=512)
    tokens = torch.from_numpy(windows).long()
    reference = [model(window[None]).logits[0].log_softmax(-1) for window in tokens]
    linears = {name: model.get_submodule(name) for name in moments}
    exact = {name: [p.data for p in _weights(linear)] for name, linear in linears.items()}
    factored = any(isinstance(linear, LowRankLinear) for linear in linears.values())
    for step in asked.step or (STEPS if factored else DENSE_STEPS):
        started = time.process_time()
        for name, linear in linears.items():
            for parameter, values in zip(_weights(linear), exact[name], strict=True):
                parameter.data = values
            found = rounded_product(linear, moments[name].double(), step, asked.type, library)
            for parameter, values in zip(_weights(linear), found, strict=True):
                parameter.data = values
        seconds = time.process_time() - started
        losses, same = [], []
        for window, p in zip(tokens, reference, strict=True):
            q = model(window[None]).logits[0].log_softmax(-1)
            losses.append((p.exp() * (p - q)).sum(-1))
            same.append(p.argmax(-1) == q.argmax(-1))
        kld, top = torch.cat(losses).mean(), torch.cat(same).float().mean()
        print(f"{asked.type} {step}: KLD {kld:.4f}, same-top {top:.1%}, {seconds:.0f} CPU s", flush=True)


def _weights(linear: nn.Module) -> list[nn.Parameter]:
    parts = [linear.lowrank_v, linear.lowrank_u] if isinstance(linear, LowRankLinear) else [linear]
    return [part.weight for part in parts if isinstance(part, nn.Linear)]


if __name__ == "__main__":
    main()
