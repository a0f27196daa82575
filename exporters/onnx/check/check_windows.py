"""What an export is checked on: fixed windows of ordinary text, what torch makes of them, and torch's attention.

Random tokens would not do: on them 8-bit rounding alone moves a factored model by whole nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ....converter.core.errors import InputError
from ....converter.model.loading import load_tokenizer
from ....converter.model.tokens import tokens_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

WINDOW_TOKENS = 48
GENERATED_TOKENS = 4
TEXTS = (
    "The lighthouse keeper climbed the stairs every evening to light the lamp, and every morning he climbed them again "
    "to put it out. In between he read letters, mended nets, and wrote down the weather in a small blue book.",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n    return total / "
    "len(values)\n\n\nprint(mean([3, 1, 4, 1, 5, 9, 2, 6]))\n",
    "Question: how many days are there from the 3rd of March to the 17th of April? Answer: 28 days are left in March, "
    "17 more follow in April, so there are 45.",
)

_LONGEST_SLIDING_WINDOW = 1024  # longer ones are compared as a number of the graph, not run over
_BEYOND = 16  # tokens that slide out of the window


@dataclass(frozen=True)
class AttentionFacts:
    """What one block's attention does besides its weights.

    Attributes:
        heads, key_value_heads: numbers of heads.
        scale: of the scores.
        softcap: bound of the scores, 0 for none.
        window: positions a token sees, itself included, -1 for all.
    """

    heads: int
    key_value_heads: int
    scale: float
    softcap: float
    window: int


@dataclass(frozen=True)
class Tokenized:
    """What a checkpoint's tokenizer makes of `TEXTS`.

    Attributes:
        tokens: of each text, without special tokens.
        begin: the token put before a text, if the model's files name one.
        decoded: the tokens of each as text again.
    """

    tokens: tuple[tuple[int, ...], ...]
    begin: int | None
    decoded: tuple[str, ...]


@dataclass(frozen=True)
class Reference:
    """What an export must reproduce.

    Attributes:
        windows: token ids, (T,) int32 each; beginnings of `TEXTS`, the last may be a repetition.
        logits: torch's, (T, vocabulary) float32 each.
        attention: of every block.
        context: positions the model knows.
        tokenized: `TEXTS` as the checkpoint's tokenizer reads them.
    """

    windows: tuple[NDArray[np.int32], ...]
    logits: tuple[NDArray[np.float32], ...]
    attention: tuple[AttentionFacts, ...]
    context: int
    tokenized: Tokenized


def reference_of(model: PreTrainedModel, checkpoint: Path) -> Reference:
    """Run the torch model on the windows.

    One window is longer than the model's sliding attention window, where it has one of at most 1024 tokens.

    Args:
        model: in float32.
        checkpoint: its directory, with a tokenizer.

    Raises:
        InputError: no usable tokenizer, or one made for another model.
    """
    config: Any = model.config
    tokenized = tokenize_texts(checkpoint, int(config.vocab_size))
    tokens = tokenized.tokens
    context = int(config.max_position_embeddings)
    attention = attention_facts(model)
    longest = max(context - GENERATED_TOKENS, 2)
    windows = [np.asarray(ids[: min(WINDOW_TOKENS, longest)], dtype=np.int32) for ids in tokens]
    sliding = max((facts.window for facts in attention if facts.window <= _LONGEST_SLIDING_WINDOW), default=-1)
    length = min(sliding + _BEYOND, longest)
    if length > len(windows[0]) and sliding > 0:
        windows.append(np.resize(np.asarray(tokens[0], dtype=np.int32), length))
    return Reference(
        windows=tuple(windows),
        logits=tuple(reference_logits(model, window) for window in windows),
        attention=attention,
        context=context,
        tokenized=tokenized,
    )


def tokenize_texts(checkpoint: Path, vocabulary: int) -> Tokenized:
    """`TEXTS` through the tokenizer of a checkpoint.

    Args:
        checkpoint: its directory.
        vocabulary: rows of its embedding.

    Raises:
        InputError: no usable tokenizer, or one made for another model.
    """
    tokenizer: Any = load_tokenizer(checkpoint)
    tokens = tuple(tuple(map(int, tokenizer.encode(text, add_special_tokens=False))) for text in TEXTS)
    _check_tokens(tokens, vocabulary, checkpoint)
    decoded = tuple(tokenizer.decode(ids, skip_special_tokens=True) for ids in tokens)
    return Tokenized(tokens, tokens_of(tokenizer).begin, decoded)


def reference_logits(model: PreTrainedModel, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """Logits (T, vocabulary) of the torch model."""
    import torch

    with torch.inference_mode():
        logits = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
    return np.asarray(logits.float().numpy(), dtype=np.float32)


def attention_facts(model: PreTrainedModel) -> tuple[AttentionFacts, ...]:
    """Read from the torch modules what each block's attention does, in the order of the blocks.

    Empty for a family whose attention modules are not called `self_attn`.
    """
    config: Any = model.config
    modules = [module for name, module in model.named_modules() if name.endswith(".self_attn")]
    return tuple(_facts(module, config) for module in modules if hasattr(module, "scaling"))


def _facts(module: Any, config: Any) -> AttentionFacts:
    everywhere = getattr(config, "sliding_window", None) if getattr(config, "layer_types", None) is None else None
    window = getattr(module, "sliding_window", everywhere)
    heads = int(config.num_attention_heads)
    return AttentionFacts(
        heads=heads,
        key_value_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        scale=float(module.scaling),
        softcap=float(getattr(module, "attn_logit_softcapping", None) or 0.0),
        window=int(window or -1),
    )


def _check_tokens(tokens: tuple[tuple[int, ...], ...], vocabulary: int, checkpoint: Path) -> None:
    fewest, largest = min(map(len, tokens)), max(max(ids, default=0) for ids in tokens)
    if fewest < 2:
        raise InputError(f"{checkpoint}: its tokenizer gives {fewest} tokens for a sentence")
    if largest >= vocabulary:
        raise InputError(f"{checkpoint}: its tokenizer has token {largest}, the model knows {vocabulary} tokens")
