"""The table of families: a tiny random model of each, compressed, exported, and held against torch.

    python benchmarks/families.py
    python benchmarks/families.py --family gemma2 --family opt

Mean KL divergence, in nats per token, of the exported files in float32 from the compressed checkpoint in torch; what
gelu costs in llama.cpp, which looks it up in a table of 16-bit numbers, is in it.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowrank_export.converter.core.errors import LowRankError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.core.recipe import Recipe
from lowrank_export.converter.families.table import FAMILIES
from lowrank_export.converter.model.loading import load
from lowrank_export.converter.pipeline import compress
from lowrank_export.exporters.export import export
from lowrank_export.exporters.onnx.weights.types import OnnxOptions
from lowrank_export.exporters.registry import requested
from lowrank_export.runtime_tests.backends.genai import GenAiBackend
from lowrank_export.runtime_tests.backends.llama_cpp import LlamaCppBackend
from lowrank_export.runtime_tests.backends.onnxruntime import OnnxRuntimeBackend
from lowrank_export.runtime_tests.backends.torch_reference import TorchBackend
from lowrank_export.runtime_tests.metrics.parity import divergence

TOKENS = np.random.default_rng(0).integers(2, 320, 96).astype(np.int32)  # more than the tiny models' sliding windows
HEAD = "| family | compress | GGUF | llama.cpp | ONNX through | ONNX Runtime | GenAI |\n|---|---|---|---|---|---|---|"


def row(name: str, folder: Path, tiny: Any) -> str:
    """One family's line of the table."""
    family = FAMILIES[name]
    if family.compressed:
        tiny.save_dense(folder / "dense", name)
        (folder / "text.txt").write_text(tiny.TEXT, encoding="utf-8")
        compress(recipe(folder), folder / "checkpoint", progress=SilentProgress())
    else:
        tiny.save_factored(folder / "checkpoint", name, rank=24)
    reference = TorchBackend(load(folder / "checkpoint")).window_logits(TOKENS)

    def away(backend: Any) -> str:
        try:
            found = backend.window_logits(TOKENS)
        finally:
            backend.close()
        return f"{divergence(reference, found, np.zeros(len(TOKENS), dtype=np.int32)).kld.mean():.1e}"

    cells = [name, "yes" if family.compressed else "no"]
    if family.gguf is None:
        cells += [family.no_gguf or "no", ""]
    else:
        file = export(folder / "checkpoint", folder / "m.gguf", requested("gguf", "f32")).path
        cells += [f"`{family.gguf.architecture}`", away(LlamaCppBackend(file, n_ctx=len(TOKENS)))]
    options = OnnxOptions(factors="all")
    onnx = export(folder / "checkpoint", folder / "onnx", requested("onnx", "fp32", options=options)).path
    cells += ["trace" if family.onnx.builder is None else "builder"]
    cells += [away(OnnxRuntimeBackend(onnx, threads=1)), away(GenAiBackend(onnx, threads=1))]
    return f"| {' | '.join(cells)} |"


def recipe(folder: Path) -> Recipe:
    """Small ranks, so that nothing is left whole."""
    return Recipe(
        model=str(folder / "dense"),
        retention=0.7,
        rank_multiple=4,
        calibration=str(folder / "text.txt"),
        windows=4,
        window_length=64,
        held_out=0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", choices=tuple(FAMILIES), help="these only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = importlib.util.spec_from_file_location("tiny", Path(__file__).resolve().parent.parent / "tests" / "tiny.py")
    assert spec is not None and spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    print(HEAD)
    for name in options.family or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(row(name, Path(folder), tiny), flush=True)
            except LowRankError as error:
                print(f"| {name} | {' '.join(str(error).split())} | | | | | |", flush=True)


if __name__ == "__main__":
    main()
