"""What the speed benchmarks share: random llamas, dense and factored. Speed does not depend on what weights hold."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from lowrank_export.converter.checkpoint.lowrank_linear import replace_linears
from lowrank_export.converter.checkpoint.transformers_integration import LowRankConfig
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.core.recipe import Recipe
from lowrank_export.converter.planning.preparation import prepared
from lowrank_export.exporters.artifact import Artifact
from lowrank_export.runtime_tests.backends.open import open_backend
from lowrank_export.runtime_tests.timing.speed import Rate, Speed, measure_speed


def save_random_factors(path: Path, dense: Path, recipe: Recipe) -> None:
    """A factored checkpoint with the ranks that a recipe plans for `dense`, and random factors."""
    with prepared(recipe, device="cpu", progress=SilentProgress()) as job:
        ranks = job.plan.ranks
    model = AutoModelForCausalLM.from_pretrained(dense)
    in_order = [name for name in ranks if name.endswith(("gate_proj", "up_proj"))]
    replace_linears(model, ranks, recipe.layout, in_order)
    for name, parameter in model.named_parameters():
        if ".lowrank_" in name:
            fill(parameter)
    for name, buffer in model.named_buffers():
        if name.endswith("lowrank_perm"):
            buffer.copy_(torch.randperm(len(buffer)))
    model.config.quantization_config = LowRankConfig(recipe.layout, ranks, recipe.retention, "random")
    model.save_pretrained(path)
    save_tokenizer(path)


@torch.no_grad()
def fill(parameter: torch.Tensor) -> None:
    """Random weights that keep the size of what they multiply."""
    parameter.normal_(std=parameter.shape[-1] ** -0.5)


def save_tokenizer(path: Path, size: int = 0) -> int:
    """A tokenizer that knows 256 bytes and one merge, without which llama.cpp loads none; returns its size.

    Up to `size`, tokens that no text has follow.
    """
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    symbols += [f"<{index}>" for index in range(len(symbols), size)]
    raw = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[("t", "h")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=symbols[0]).save_pretrained(path)
    return len(symbols)


def save_random_llama(path: Path, width: int, blocks: int, context: int) -> None:
    """A llama of random weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=save_tokenizer(path),
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=blocks,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 256,
        head_dim=64,
        max_position_embeddings=max(1024, context),
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config).float()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            fill(parameter)
    model.save_pretrained(path)


def save_sharded_llama(
    path: Path, width: int, inner: int, head_size: int, blocks: int, vocabulary: int, context: int
) -> None:
    """A llama of random weights in bfloat16, a shard per block: a block is in memory at a time."""
    path.mkdir(parents=True)
    save_tokenizer(path, vocabulary)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=width // head_size,
        num_key_value_heads=width // head_size,
        head_dim=head_size,
        max_position_embeddings=context,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(path)
    outer = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (width, width), "self_attn.v_proj": (width, width)}
    outer |= {"self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width)}
    outer |= {"mlp.down_proj": (width, inner), "input_layernorm": (width,), "post_attention_layernorm": (width,)}
    shards = {
        f"block-{index:05d}": {f"model.layers.{index}.{name}.weight": shape for name, shape in outer.items()}
        for index in range(blocks)
    }
    shards |= {name: {f"{name}.weight": (vocabulary, width)} for name in ("model.embed_tokens", "lm_head")}
    shards["norm"] = {"model.norm.weight": (width,)}
    weight_map = {}
    for number, (label, shapes) in enumerate(shards.items()):
        generator = torch.Generator().manual_seed(number)
        tensors = {name: _random(shape, generator) for name, shape in shapes.items()}
        save_file(tensors, path / f"model-{label}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, f"model-{label}.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Norms of one, and matrices that keep the size of what they multiply, in bfloat16."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=shape[1] ** -0.5, generator=generator)


def speed_options(description: str | None, *, blocks: int, prompt: int) -> argparse.ArgumentParser:
    """The options that the speed benchmarks share, with their defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--blocks", type=int, default=blocks)
    parser.add_argument("--retention", type=float, default=0.6)
    parser.add_argument("--prompt", type=int, default=prompt, help="tokens")
    parser.add_argument("--decode", type=int, default=48, help="tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--loads", type=int, default=1, help="how often models are opened anew, see timed()")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gguf-type", action="append")
    return parser


def timed(artifacts: Sequence[Artifact], runtime: str, options: argparse.Namespace) -> list[Speed]:
    """The speed of each in one runtime, timed in turn on random tokens, all of them opened anew `--loads` times.

    Where a model's weights come to lie in memory makes a few percent, for as long as it is open.
    """
    length = options.prompt + options.decode
    tokens = np.random.default_rng(0).integers(0, 256, length).astype(np.int32)
    loads = []
    for _ in range(options.loads):
        backends = [
            open_backend(artifact.path, runtime, threads=options.threads, context=length, exact=False)
            for artifact in artifacts
        ]
        found = measure_speed(
            backends,
            tokens,
            prompts=[options.prompt],
            decode_tokens=options.decode,
            threads=options.threads,
            repeats=options.repeats,
        )
        for backend in backends:
            backend.close()
        loads.append([speed for (speed,) in found])
    return [_over_loads(speeds) for speeds in zip(*loads, strict=True)]


def _over_loads(speeds: Sequence[Speed]) -> Speed:
    """The median of the medians, and the range."""

    def rate(rates: Sequence[Rate]) -> Rate:
        medians = [rate.median for rate in rates]
        return Rate(median(medians), min(rate.lowest for rate in rates), max(rate.highest for rate in rates))

    prefill, decode = (rate([getattr(speed, kind) for speed in speeds]) for kind in ("prefill", "decode"))
    return replace(speeds[0], prefill=prefill, decode=decode)


def said(rate: Rate, dense: Rate) -> str:
    """Median rate, its ratio to dense, and the ratio of the fastest rounds."""
    ratio, best = rate.median / dense.median, rate.highest / dense.highest
    return f"{rate.median:8.1f} tok/s = {ratio:.2f}x dense (best rounds {best:.2f}x)"
