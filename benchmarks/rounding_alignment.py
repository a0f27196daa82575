"""How much of the unrounded model's stream the rounding of a linear should aim at: the first blocks, rounded by alpha.

The first blocks of a model are rounded in forward order, dense, and what they make of two texts is put through norm and
head (its first rows) and compared with what the unrounded blocks make: KL divergence, and the relative squared error
of the residual stream.

    python benchmarks/rounding_alignment.py --text wiki.test.raw --alpha 0 --alpha 0.4
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.model.blocks import BlockSource
from lowrank_export.converter.model.loading import load_tokenizer
from lowrank_export.converter.model.source import open_source
from lowrank_export.converter.statistics.calibration import calibrate
from lowrank_export.exporters.gguf.gptq_tensors import rounder
from lowrank_export.exporters.gguf.rounding import Rows
from lowrank_export.exporters.llamacpp.runtime import ggml_library
from lowrank_export.exporters.rounding.gptq_linears import WEIGHT, round_linears

HEAD_ROWS = 8192


@torch.no_grad()
def main() -> None:
    """Print a line per alpha."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--type", default="iq4_nl")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--windows", type=int, default=12, help="of calibration, python-docs")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--text", required=True, help="that is measured on")
    parser.add_argument("--alpha", type=float, action="append", required=True)
    options = parser.parse_args()
    progress = SilentProgress()
    source, library = open_source(options.model, progress), ggml_library(progress)
    tokenizer = load_tokenizer(source.path)

    def windows(text: str, count: int) -> Tensor:
        sizes = {"windows": count, "length": options.length, "held_out": 0, "seed": 0}
        return torch.from_numpy(calibrate(text, tokenizer, **sizes).windows)

    def opened() -> BlockSource:
        blocks = BlockSource(source.reader(), source.family, torch.device("cpu"), torch.float32)
        blocks.block_count = options.blocks
        return blocks

    dense, measured = opened(), windows(options.text, 3)
    norm, head = dense.head()

    def outcome(blocks: list[nn.Module]) -> tuple[Tensor, Tensor]:
        (stream,) = dense.embed([measured])
        for block in blocks:
            stream = dense.run(block, stream)
        return stream, (norm(stream) @ head[:HEAD_ROWS].T).log_softmax(-1)

    wanted, likely = outcome([dense.block(index) for index in range(options.blocks)])
    calibration, encode = windows("python-docs", options.windows), rounder(library)
    for alpha in options.alpha:
        values: dict[str, Tensor] = {}

        def rounded(name: str, weights: Tensor, moment: Tensor, type: str, values: dict[str, Tensor] = values) -> Rows:
            found = encode(name, weights, moment, type)
            values[name] = found.values
            return found

        types = {WEIGHT: options.type}
        for _ in round_linears(opened(), [calibration], lambda _, types=types: types, rounded, progress, alpha):  # type: ignore[misc]
            pass
        blocks = [dense.block(index) for index in range(options.blocks)]
        for index, block in enumerate(blocks):
            for path in dense.family.linears:
                linear = block.get_submodule(path)
                linear.weight = nn.Parameter(values[f"{dense.family.linear_name(index, path)}.{WEIGHT}"], False)
        stream, found = outcome(blocks)
        kld = float((likely.exp() * (likely - found)).sum(-1).mean())
        error = float((stream - wanted).square().sum() / wanted.square().sum())
        print(f"alpha {alpha:g}: KLD {kld:.5f}, relative error of the stream {error:.5f}", flush=True)


if __name__ == "__main__":
    main()
