"""CPU milliseconds of float32 linears, and of a llama block made of them: by PyTorch's own choice of library (MKL), by
oneDNN with the permission to multiply in bfloat16 (only measured here: with AMX its results are those of bfloat16), and
by oneDNN without it, as a compression computes. One thread; the error is the largest of the last, against float64.

python benchmarks/float32_linears.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lowrank_export.converter.checkpoint.lowrank_linear import replace_linears
from lowrank_export.converter.machine.float32 import float32_products, float32_settings

# tokens, inputs, outputs: of models 576 and 2048 wide, dense and factored
SHAPES = (
    (4096, 576, 1536),
    (4096, 1536, 576),
    (4096, 576, 173),
    (4096, 173, 576),
    (4096, 2048, 4096),
    (4096, 4096, 2048),
    (4096, 2048, 700),
    (4096, 700, 2048),
)
RANKS = {"q_proj": 173, "k_proj": 86, "v_proj": 86, "o_proj": 173, "gate_proj": 251, "up_proj": 251, "down_proj": 251}


@contextmanager
def permitted() -> Iterator[None]:
    """What a compression must not do."""
    setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


WAYS: dict[str, Callable[[], Any]] = {
    "MKL": float32_settings,
    "permitted": permitted,
    "oneDNN": lambda: float32_products("cpu", fast=True),
}


def main() -> None:
    """A line per linear, then one per block and pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'':36}" + "".join(f"{way:>10}" for way in WAYS) + "     error")
    for tokens, inputs, outputs in SHAPES:
        x, weight = torch.randn(tokens, inputs), torch.randn(outputs, inputs)
        with WAYS["oneDNN"]():
            exact = x.double() @ weight.double().T
            error = float((nn.functional.linear(x, weight) - exact).abs().max() / exact.abs().max())
        report(f"{tokens} x {inputs} -> {outputs}", lambda x=x, w=weight: nn.functional.linear(x, w), repeats, error)
    for name, factored in (("dense block", False), ("factored block", True)):
        forward, descent = passes(factored)
        report(f"{name}, forward", forward, repeats)
        report(f"{name}, forward and backward", descent, repeats)


def report(name: str, work: Callable[[], object], repeats: int, error: float | None = None) -> None:
    """One line: the ways take turns, and the best of each counts."""
    best = dict.fromkeys(WAYS, float("inf"))
    for _ in range(repeats + 1):
        for way, context in WAYS.items():
            with context():
                started = time.process_time()
                work()
                best[way] = min(best[way], time.process_time() - started)
    said = "" if error is None else f"{error:10.1e}"
    print(f"{name:36}" + "".join(f"{1000 * value:10.1f}" for value in best.values()) + said, flush=True)


def passes(factored: bool) -> tuple[Callable[[], object], Callable[[], object]]:
    """Forward, and forward and backward, of a block 576 wide on 4 windows of 1024 tokens."""
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = AutoConfig.for_model("llama", num_hidden_layers=1, vocab_size=320, **sizes)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".layers." in name]
    if factored:
        replace_linears(model, {name: RANKS[name.rpartition(".")[2]] for name in names})
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.03)
    block, x, places = model.model.layers[0], torch.randn(4, 1024, 576), torch.arange(1024)[None]
    rotary = model.model.rotary_emb(x, position_ids=places)

    def run() -> torch.Tensor:
        y = block(x, position_embeddings=rotary, position_ids=places)
        return y[0] if isinstance(y, tuple) else y

    @torch.no_grad()
    def forward() -> None:
        run()

    def descent() -> None:
        run().sum().backward()

    return forward, descent


if __name__ == "__main__":
    main()
