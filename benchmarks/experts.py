"""Time and memory of a mixture of 16 experts per block beside a dense model that computes as much for a token.

Random Qwen3 models in bfloat16, each command in a process of its own; random tokens as calibration. The mixture sends a
token to 2 of its 16 experts, the dense model's MLP is as wide as those two together. A mixture's block has 8 times the
weights of its MLPs, and as many moments as experts.

    python benchmarks/experts.py
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from memory_of_one_block import run

EXPERTS, USED = 16, 2
BUILD = """
import sys, torch
from pathlib import Path
from transformers import AutoConfig, AutoModelForCausalLM
from random_llama import fill, save_tokenizer
path, family, width, inner, blocks, count, used = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
size = save_tokenizer(path)
experts = {"num_experts": count, "num_experts_per_tok": used, "moe_intermediate_size": inner // used}
config = AutoConfig.for_model(
    family, vocab_size=size, hidden_size=width, intermediate_size=inner, num_hidden_layers=blocks,
    num_attention_heads=width // 64, num_key_value_heads=width // 128, head_dim=64, max_position_embeddings=2048,
    tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    **({**experts, "norm_topk_prob": True} if "moe" in family else {}),
)
model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
for parameter in model.parameters():
    fill(parameter) if parameter.ndim > 1 else None
model.save_pretrained(path)
"""
HEADER = ("model", "weights MB", "block MB", "compress s", "peak MB", "forecast MB", "export s", "export MB")


def main() -> None:
    """Print a line per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--inner", type=int, default=1024, help="features of the experts that a token is sent to")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--window-length", type=int, default=512)
    parser.add_argument("--method", default="adasvd")
    given = parser.parse_args()
    print("  ".join(f"{title:>11}" for title in HEADER))
    for family in ("qwen3", "qwen3_moe"):
        with tempfile.TemporaryDirectory() as folder:
            print("  ".join(f"{value:>11}" for value in measured(Path(folder), family, given)), flush=True)


def measured(folder: Path, family: str, given: argparse.Namespace) -> list[str]:
    """Build, compress and export one model."""
    sizes = map(str, (given.width, given.inner, given.blocks, EXPERTS, USED))
    here = Path(__file__).parent
    (folder / "m").mkdir()
    subprocess.run([sys.executable, "-c", BUILD, str(folder / "m"), family, *sizes], cwd=here, check=True)
    shape = (given.windows, given.window_length)
    np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, 256, shape, dtype=np.int32))
    weights = sum(file.stat().st_size for file in (folder / "m").glob("*.safetensors")) / 1e6
    options = ["--model", str(folder / "m"), "--calibration", str(folder / "tokens.npy"), "--method", given.method]
    started = time.perf_counter()
    done = run("compress", *options, "--retention", "0.6", "--out", str(folder / "f"))
    taken, memory = time.perf_counter() - started, done["memory"]
    started = time.perf_counter()
    exported = run("export", str(folder / "f"), "--format", "gguf", "--out", str(folder / "g"))
    return [
        family,
        f"{weights:.1f}",
        f"{2 * weights / given.blocks:.1f}",  # float32, embedding included
        f"{taken:.1f}",
        f"{memory['peak_bytes'] / 1e6:.0f}",
        f"{memory['forecast_bytes'] / 1e6:.0f}",
        f"{time.perf_counter() - started:.1f}",
        f"{exported['process']['peak_bytes'] / 1e6:.0f}",
    ]


if __name__ == "__main__":
    main()
