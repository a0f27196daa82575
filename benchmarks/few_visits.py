"""What stands in for the tokens that an expert is not sent: rules compared on the tokens that it is sent later.

The MLP of a block of the demo model serves as an expert, and the tokens nearest to one of 16 means of its inputs as
those that a router sends to it: real activations, of which a kind of text uses some directions. Of a rule and a number
of tokens the table has the mean squared error of the truncated MLP's linears on other tokens of that kind, relative to
their outputs.

    python benchmarks/few_visits.py --text wiki.valid.raw
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.factors.factorization import factor, output_energy, truncation_loss
from lowrank_export.converter.factors.whitening import whiten
from lowrank_export.converter.model.block_forward import StoppedForward, TappedBlock
from lowrank_export.converter.model.blocks import BlockSource
from lowrank_export.converter.model.loading import load_tokenizer
from lowrank_export.converter.model.source import open_source

KINDS, RETENTION = 16, 0.6
COUNTS = (0, 16, 64, 192, 576, 1536)
LINEARS = {"mlp in": "mlp.gate_proj", "mlp out": "mlp.down_proj"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 14, 24])
    parser.add_argument("--tokens", type=int, default=48 * 1024)
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    source = open_source("demo", SilentProgress())
    blocks = BlockSource(source.reader(), source.family, torch.device("cpu"), torch.float32)
    ids = load_tokenizer(source.path)(given.text.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][0]
    streams = list(blocks.embed(list(ids[: given.tokens].reshape(-1, 8, 512))))
    losses: dict[tuple[str, str, int], list[float]] = {}
    for index in range(max(given.blocks) + 1):
        inputs, streams = passed(blocks, index, streams)
        if index in given.blocks:
            compare(blocks, index, inputs, losses)
    for group in LINEARS:
        print(f"{group:12}" + "".join(f"{count:>9}" for count in COUNTS))
        for rule in dict.fromkeys(rule for _, rule, _ in losses):
            row = [losses[group, rule, count] for count in COUNTS]
            print(f"{rule:12}" + "".join(f"{sum(values) / len(values):9.4f}" for values in row))


def passed(blocks: BlockSource, index: int, streams: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Inputs of the MLP's linears over all windows, and the block's outputs."""
    tapped, found, after = TappedBlock(blocks.block(index), blocks.family), dict[str, list[Tensor]](), []
    for stream in streams:
        forward = StoppedForward(lambda stream=stream: blocks.run(tapped.block, stream))
        for group in blocks.family.groups:
            found.setdefault(group.name, []).append(forward.next_input())
        after.append(forward.finish())
    return {name: torch.cat(found[name]) for name in LINEARS}, after


def kinds(x: Tensor) -> Tensor:
    """Which of a few means of normed inputs each token is nearest to: Lloyd's algorithm, (T,)."""
    x = torch.nn.functional.normalize(x, dim=1)
    means = x[torch.linspace(0, len(x) - 1, KINDS).long()]
    for _ in range(12):
        nearest = (x @ means.T).argmax(dim=1)
        means = torch.stack(
            [x[nearest == kind].mean(dim=0) if (nearest == kind).any() else means[kind] for kind in range(KINDS)]
        )
        means = torch.nn.functional.normalize(means, dim=1)
    return nearest


def moment(x: Tensor) -> Tensor:
    """Sum of squares (n, n) float64."""
    return (x.T @ x).double()


def compare(
    blocks: BlockSource, index: int, inputs: dict[str, Tensor], losses: dict[tuple[str, str, int], list[float]]
) -> None:
    """Add the losses of one block."""
    nearest, block = kinds(inputs["mlp in"]), blocks.block(index)
    sizes = torch.bincount(nearest, minlength=KINDS)
    chosen = [kind for kind in sizes.argsort(descending=True)[:6].tolist() if sizes[kind] > 2 * COUNTS[-1]]
    for kind in chosen:
        own = torch.where(nearest == kind)[0]
        own = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(kind))]
        for group, path in LINEARS.items():
            x, weight = inputs[group], block.get_parameter(f"{path}.weight").double()
            n = x.shape[1]
            rank = int(RETENTION * weight.numel() / sum(weight.shape))
            truth = moment(x[own[COUNTS[-1] :]])
            pooled = moment(x) / len(x)
            energy = output_energy(weight, truth)
            for count in COUNTS:
                seen, scale = moment(x[own[:count]]), float(pooled.diagonal().mean())
                rules = {
                    "own": seen,
                    "pooled": pooled,
                    "own + n/4": seen + max(0, n / 4 - count) * pooled,
                    "own + n": seen + max(0, n - count) * pooled,
                    "own + 4n": seen + max(0, 4 * n - count) * pooled,
                    "own + n I": seen + max(0, n - count) * scale * torch.eye(n, dtype=torch.float64),
                    "plain SVD": torch.eye(n, dtype=torch.float64),
                }
                for rule, sigma in rules.items():
                    factors, _ = factor(weight, rank, whiten(sigma))
                    losses.setdefault((group, rule, count), []).append(truncation_loss(weight, factors, truth) / energy)


if __name__ == "__main__":
    main()
