"""Tiny random models of every supported family, and a tiny tokenizer: what whole-run tests are made of."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from lowrank_export.converter.families.table import FAMILIES as KNOWN
from lowrank_export.converter.families.table import compressed

FAMILIES = tuple(compressed())
VOCABULARY = 320
HIDDEN = 64
INTERMEDIATE = 160


def config(family: str, *, tied: bool = True, blocks: int = 2, **overrides: Any) -> Any:
    """A configuration with grouped-query attention (4 heads, 2 key/value heads)."""
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tied,
        "bos_token_id": 0,
        "pad_token_id": None,  # Phi-3's default lies beyond this vocabulary
        "eos_token_id": 0,
        **(KNOWN[family].tiny if family in KNOWN else {}),
        **overrides,
    }
    if kinds := settings.get("layer_types"):
        settings["layer_types"] = [kinds[block % len(kinds)] for block in range(settings["num_hidden_layers"])]
    return AutoConfig.for_model(family, **settings)


def model(family: str, *, tied: bool = True, seed: int = 0, blocks: int = 2, **overrides: Any) -> PreTrainedModel:
    """A random model in float32; weights, biases and norms are large enough for every path to show in the logits."""
    torch.manual_seed(seed)
    built = AutoModelForCausalLM.from_config(config(family, tied=tied, blocks=blocks, **overrides)).float().eval()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if parameter.ndim == 1:
                center = 0.0 if name.endswith("bias") else 1.0
                parameter.copy_(center + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return built


TEXT = (
    "The whitened singular value decomposition keeps what the data need. A rank is a budget; a budget is a choice.\n"
    "def factor(weight, rank):\n    return u[:, :rank], v[:rank]\n\nNumbers: 0123456789, and 3.14159 too.\n"
) * 40


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `VOCABULARY` tokens with GPT-2's pre-tokenizer; token 0 ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="<|endoftext|>", bos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


@cache
def sentencepiece(*, space_before: bool) -> PreTrainedTokenizerFast:
    """A tokenizer like sentencepiece's, of 520 tokens, with bytes for what it does not know.

    With a space before every text it is as Llama 1 had one, without as Gemma has.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    mark = "\u2581"
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    replace = normalizers.Replace(" ", mark)
    raw.normalizer = normalizers.Sequence([normalizers.Prepend(mark), replace]) if space_before else replace
    raw.decoder = decoders.Sequence([decoders.Replace(mark, " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY + 200,
        special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    raw.train_from_iterator(TEXT.split(), trainer)
    data = raw.to_str().replace('"special":true', '"special":false')
    raw = Tokenizer.from_str(data)
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if not space_before:
        raw.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        raw.add_tokens([AddedToken("\n\n", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def save_dense(path: Path, family: str, **options: Any) -> PreTrainedModel:
    """Write a dense checkpoint with tokenizer; return the model."""
    built = model(family, **options)
    built.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return built


def factored(
    family: str, *, rank: int | None = None, only: Mapping[str, int] | None = None, **options: Any
) -> tuple[PreTrainedModel, dict[str, int]]:
    """A model whose block linears are factored by plain SVD at `rank` (full rank by default), and their ranks.

    With `only`, linear -> rank, those alone are factored.

    At full rank the factored model computes what `model(family, **options)` computes, up to rounding.
    """
    from lowrank_export.converter.checkpoint.expert_modules import separate_experts
    from lowrank_export.converter.checkpoint.lowrank_linear import LowRankLinear, replace_linears

    built = model(family, **options)
    separate_experts(built, KNOWN[family])
    weights = {
        name: module.weight.detach().double()
        for name, module in built.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers." in name
    }
    biases = {name: built.get_submodule(name).bias for name in weights}
    ranks = {name: min(rank or min(weight.shape), *weight.shape) for name, weight in weights.items()}
    if only is not None:
        ranks = dict(only)
    replace_linears(built, ranks)
    with torch.no_grad():
        for name in ranks:
            weight, module = weights[name], built.get_submodule(name)
            assert isinstance(module, LowRankLinear)
            u, s, vt = torch.linalg.svd(weight, full_matrices=False)
            root = s[: ranks[name]].sqrt()
            module.lowrank_u.weight.copy_(u[:, : ranks[name]] * root)
            module.lowrank_v.weight.copy_(root[:, None] * vt[: ranks[name]])
            if biases[name] is not None:
                module.bias = biases[name]
    return built, ranks


def save_factored(path: Path, family: str, *, layout: Any = "two-factor", **options: Any) -> PreTrainedModel:
    """Write a factored checkpoint, see `factored`; return the model. The pivot layout wants a rank below every side."""
    from lowrank_export.converter.checkpoint.factored_types import saved_as_factored
    from lowrank_export.converter.checkpoint.transformers_integration import LowRankConfig
    from lowrank_export.converter.factors.pivot_block import pivot_block

    built, ranks = factored(family, **options)
    if layout == "pivot":
        for block in built.model.layers:
            pivot_block(block, KNOWN[family])
    built.config.quantization_config = LowRankConfig(layout=layout, ranks=ranks, retention=1.0, method="svd")
    saved_as_factored(built.config)
    built.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return built


def job_options(model: Path, out: Path, text: object) -> list[str]:
    """Options of the main job that keep it small, with one text for calibration and evaluation; speed is not timed."""
    options = {
        "model": model,
        "out": out,
        "calibration": text,
        "evaluate": text,
        "windows": 4,
        "window-length": 32,
        "rank-multiple": 4,
        "evaluation-windows": 2,
        "evaluation-length": 32,
        "threads": 1,
    }
    loose = ("quality.mean_kld=off", "quality.perplexity_increase=off")  # a random model has no quality
    words = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    return [*words, "--no-speed", *(word for gate in loose for word in ("--gate", gate))]


def save_chosen(path: Path, family: str, choice: Mapping[str, str], **options: Any) -> PreTrainedModel:
    """Write a checkpoint whose recipe says what every matrix becomes, factored by plain SVD; return the model."""
    from lowrank_export.converter.core.recipe import RECIPE_FILE, make_recipe

    recipe = make_recipe({"model": family, "choice": choice}, "tiny")
    only = {module: form.rank for module, form in recipe.forms.items() if form.rank is not None}
    built = save_factored(path, family, only=only, **options) if only else save_dense(path, family, **options)
    (path / RECIPE_FILE).write_text(recipe.to_yaml(), encoding="utf-8")
    return built
