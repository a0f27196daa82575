"""Speed of the dense, two-factor and pivot layouts side by side, in llama.cpp and in ONNX Runtime.

A random llama, wide but of few blocks and with a small vocabulary, so that the linears of the blocks are what is timed;
the same retention for both layouts, so pivot has the higher rank. All models of a runtime are timed in turn, round by
round. Takes some minutes and about 3 GB:

    python benchmarks/pivot_speed.py
    python benchmarks/pivot_speed.py --threads 1 --retention 0.8 --gguf-type f16 --onnx-type fp32
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from random_llama import said, save_random_factors, save_random_llama, speed_options, timed

from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.core.recipe import Recipe
from lowrank_export.converter.model.loading import quiet_transformers
from lowrank_export.exporters.export import export
from lowrank_export.exporters.llamacpp.runtime import ensure_runtime
from lowrank_export.exporters.registry import requested
from lowrank_export.runtime_tests.backends.formats import LLAMA_CPP, ONNXRUNTIME

LAYOUTS = ("dense", "two-factor", "pivot")


def main() -> None:
    """Print one line per runtime and layout."""
    parser = speed_options(__doc__, blocks=3, prompt=512)
    parser.add_argument("--onnx-type", action="append")
    arguments = parser.parse_args()
    wanted = [("gguf", type) for type in arguments.gguf_type or ("q8_0", "f32")]
    wanted += [("onnx", type) for type in arguments.onnx_type or ("int8", "fp32")]
    ensure_runtime(SilentProgress())
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        sources = make_checkpoints(Path(folder), arguments)
        for format, type in wanted:
            for line in measure(sources, Path(folder) / f"{format}-{type}", format, type, arguments):
                print(line, flush=True)


def make_checkpoints(folder: Path, arguments: argparse.Namespace) -> dict[str, Path]:
    """Layout -> checkpoint folder."""
    sources = {layout: folder / layout for layout in LAYOUTS}
    save_random_llama(sources["dense"], arguments.width, arguments.blocks, arguments.prompt + arguments.decode)
    for layout in LAYOUTS[1:]:
        recipe = Recipe(model=str(sources["dense"]), method="svd", retention=arguments.retention, layout=layout)
        save_random_factors(sources[layout], sources["dense"], recipe)
    return sources


def measure(sources: dict[str, Path], folder: Path, format: str, type: str, arguments: argparse.Namespace) -> list[str]:
    """Export every layout, time them in turn, and say how they compare with dense."""
    suffix, runtime = (".gguf", LLAMA_CPP) if format == "gguf" else ("", ONNXRUNTIME)
    folder.mkdir()
    made = {
        layout: export(source, folder / f"{layout}{suffix}", requested(format, type))
        for layout, source in sources.items()
    }
    speeds = timed(list(made.values()), runtime, arguments)
    dense = speeds[0]
    return [
        f"{runtime:12s} {type:5s} {layout:11s} {artifact.bytes / 1e6:7.1f} MB  "
        f"prefill {said(speed.prefill, dense.prefill)}  decode {said(speed.decode, dense.decode)}"
        for (layout, artifact), speed in zip(made.items(), speeds, strict=True)
    ]


if __name__ == "__main__":
    main()
