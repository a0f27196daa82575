"""Does a factored file decode as much faster as it is smaller? llama.cpp, dense and factored timed in turn.

A random llama, 2048 wide with 8 blocks and a small vocabulary, so that the linears of the blocks are what is timed.
Decoding reads every weight once per token, so the best that can be had is a speed-up equal to the reduction in bytes;
"share" is how much of it is reached. Takes some minutes and about 5 GB:

    python benchmarks/gguf_speed.py
    python benchmarks/gguf_speed.py --width 512 --blocks 2 --gguf-type q8_0     # seconds
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

from random_llama import said, save_random_factors, save_random_llama, speed_options, timed

from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.core.recipe import Recipe
from lowrank_export.converter.model.loading import quiet_transformers
from lowrank_export.exporters.artifact import Artifact
from lowrank_export.exporters.export import export
from lowrank_export.exporters.gguf.mixes import row_multiple
from lowrank_export.exporters.llamacpp.runtime import ensure_runtime
from lowrank_export.exporters.registry import requested
from lowrank_export.runtime_tests.backends.formats import LLAMA_CPP
from lowrank_export.runtime_tests.timing.speed import Speed

TYPES = ("f16", "q8_0", "q4_k")
GOAL = 0.95  # share of the byte reduction that decoding should gain


@dataclass(frozen=True)
class Pair:
    """One type: what dense and factored take and how fast they are."""

    type: str
    dense: Artifact
    factored: Artifact
    speeds: tuple[Speed, Speed]

    @property
    def reduction(self) -> float:
        """Bytes of the dense tensors / bytes of the factored ones."""
        dense, factored = (sum(t.bytes for t in artifact.tensors) for artifact in (self.dense, self.factored))
        return dense / factored

    @property
    def share(self) -> float:
        """Decode speed-up / byte reduction, of the median rounds."""
        dense, factored = self.speeds
        return factored.decode.median / dense.decode.median / self.reduction

    def lines(self) -> list[str]:
        """For people."""
        dense, factored = self.speeds
        prefill, decode = said(factored.prefill, dense.prefill), said(factored.decode, dense.decode)
        return [
            f"{self.type:6s} dense    {self.dense.bytes / 1e6:8.1f} MB  prefill {dense.prefill.median:8.1f} tok/s  "
            f"decode {dense.decode.median:8.1f} tok/s",
            f"{self.type:6s} factored {self.factored.bytes / 1e6:8.1f} MB  prefill {prefill}  decode {decode}",
            f"{self.type:6s} bytes {self.reduction:.3f}x smaller; share of it gained in decoding {self.share:.2f} "
            f"(goal {GOAL}: {'reached' if self.share >= GOAL else 'missed'})",
        ]


def main() -> None:
    """Print three lines per type."""
    arguments = speed_options(__doc__, blocks=8, prompt=256).parse_args()
    types = arguments.gguf_type or TYPES
    ensure_runtime(SilentProgress())
    with tempfile.TemporaryDirectory() as name, quiet_transformers():
        folder = Path(name)
        save_random_llama(folder / "dense", arguments.width, arguments.blocks, arguments.prompt + arguments.decode)
        multiple = max(32, *(row_multiple(type) for type in types))  # no other type stands in for one of them
        recipe = Recipe(
            model=str(folder / "dense"), method="svd", retention=arguments.retention, rank_multiple=multiple
        )
        save_random_factors(folder / "factored", folder / "dense", recipe)
        for type in types:
            for line in measure(folder, type, arguments).lines():
                print(line, flush=True)


def measure(folder: Path, type: str, arguments: argparse.Namespace) -> Pair:
    """Export both in one type, time them round by round, and remove them."""
    made = [
        export(folder / model, folder / f"{model}.gguf", requested("gguf", type)) for model in ("dense", "factored")
    ]
    dense, factored = timed(made, LLAMA_CPP, arguments)
    for artifact in made:
        artifact.path.unlink()
    return Pair(type, *made, (dense, factored))


if __name__ == "__main__":
    main()
