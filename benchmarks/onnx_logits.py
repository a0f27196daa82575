"""Logits of exported ONNX folders on one machine, held against those of another.

They are saved on the first and compared on the other.

It needs ONNX Runtime and what reads a folder, no torch, so that it runs on a small board or in QEMU (docs/mobile.md):

    python benchmarks/onnx_logits.py FOLDER... --save logits.npz
    python benchmarks/onnx_logits.py FOLDER... --against logits.npz
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lowrank_export.runtime_tests.backends.onnxruntime import OnnxRuntimeBackend
from lowrank_export.runtime_tests.metrics.parity import divergence

TOKENS = 24
PROMPT = 21  # the rest one by one


def logits(folder: Path) -> NDArray[np.float32]:
    """Logits (TOKENS, vocabulary) of random tokens: of a prompt in one run, then of tokens fed one by one."""
    vocabulary = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]["vocab_size"]
    tokens = np.random.default_rng(0).integers(0, vocabulary, TOKENS).astype(np.int32)
    backend = OnnxRuntimeBackend(folder, threads=1)
    prompt = backend.window_logits(tokens[:PROMPT])
    backend.feed(tokens[:PROMPT])
    rest = [backend.feed(tokens[index : index + 1]) for index in range(PROMPT, TOKENS)]
    backend.close()
    return np.concatenate([prompt, np.stack(rest)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--save", type=Path)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    found = {str(folder): logits(folder) for folder in options.folders}
    if options.save is not None:
        np.savez(options.save, **found)  # type: ignore[arg-type]
    if options.against is not None:
        saved = np.load(options.against)
        for name, here in found.items():
            kld = divergence(saved[name], here, np.zeros(TOKENS, dtype=np.int32)).kld.mean()
            print(f"{name}: mean KL divergence {kld:.1e} nats on {platform.machine()}")


if __name__ == "__main__":
    main()
