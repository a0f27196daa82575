"""What the speed benchmarks share: random llamas, dense and factored. Speed does not depend on what weights hold."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from lowrank_export.converter.lowrank_linear import replace_linears
from lowrank_export.converter.planning import prepared
from lowrank_export.converter.progress import SilentProgress
from lowrank_export.converter.recipe import Recipe
from lowrank_export.converter.transformers_integration import LowRankConfig
from lowrank_export.runtime_tests.speed import Rate


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


def save_tokenizer(path: Path) -> int:
    """A tokenizer that knows 256 bytes and one merge, without which llama.cpp loads none; returns its size."""
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
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


def said(rate: Rate, dense: Rate) -> str:
    """Median rate, its ratio to dense, and the ratio of the fastest rounds."""
    ratio, best = rate.median / dense.median, rate.highest / dense.highest
    return f"{rate.median:8.1f} tok/s = {ratio:.2f}x dense (best rounds {best:.2f}x)"
