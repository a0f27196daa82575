"""Which modules of a transformer block are linears and which share an input: data per model family, no branches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..storage.documents import shown


def _one(config: Any) -> float:
    return 1.0


@dataclass(frozen=True)
class InputGroup:
    """Linears that read the same activations, so that one second moment serves them all."""

    name: str
    linears: tuple[str, ...]  # module paths inside a block, in the order the block calls them


@dataclass(frozen=True)
class SharedOrder:
    """Linears whose outputs meet feature by feature, and the linear that consumes the result.

    Putting the output features of all producers, and the inputs of the consumer, into another order changes nothing
    the model computes. v and o are no such pair: attention splits v's outputs into heads of equal size, so features
    may move within a head only, while pivot rows must come first among all.
    """

    producers: tuple[str, ...]
    consumer: str


@dataclass(frozen=True)
class Family:
    """Where a model family keeps what the converter touches. Paths are module names inside the model."""

    model_type: str
    blocks: str
    embedding: str
    rotary: str
    norm: str
    head: str
    groups: tuple[InputGroup, ...]  # in the order a block's forward reaches them
    shared_orders: tuple[SharedOrder, ...] = ()
    embedding_scale: Callable[[Any], float] = _one  # configuration -> what embeddings are multiplied by
    logit_scale: Callable[[Any], float] = _one  # configuration -> what the head's outputs are multiplied by

    @property
    def linears(self) -> tuple[str, ...]:
        """Every linear of a block."""
        return tuple(name for group in self.groups for name in group.linears)

    @property
    def residual_linear(self) -> str:
        """The linear whose output is added to the residual stream last: its output gradient is the block's."""
        return self.groups[-1].linears[-1]

    def linear_name(self, block: int, linear: str) -> str:
        """Full module name of one linear, as in the checkpoint."""
        return f"{self.blocks}.{block}.{linear}"

    def linear_type(self, name: str) -> str:
        """Path inside its block of a linear given by its full name."""
        return name.removeprefix(self.blocks + ".").partition(".")[2]


_GATED = (
    InputGroup("attention in", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    InputGroup("attention out", ("self_attn.o_proj",)),
    InputGroup("mlp in", ("mlp.gate_proj", "mlp.up_proj")),
    InputGroup("mlp out", ("mlp.down_proj",)),
)
_GATED_ORDER = (SharedOrder(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),)

_FUSED = (
    InputGroup("attention in", ("self_attn.qkv_proj",)),
    InputGroup("attention out", ("self_attn.o_proj",)),
    InputGroup("mlp in", ("mlp.gate_up_proj",)),
    InputGroup("mlp out", ("mlp.down_proj",)),
)
_PATHS = ("model.layers", "model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")


def _root_of_width(config: Any) -> float:
    return float(config.hidden_size**0.5)


def _embedding_multiplier(config: Any) -> float:
    return float(config.embedding_multiplier)


def _inverse_logits_scaling(config: Any) -> float:
    return 1.0 / float(config.logits_scaling)


FAMILIES: Mapping[str, Family] = {
    **{name: Family(name, *_PATHS, _GATED, _GATED_ORDER) for name in ("llama", "mistral", "qwen2", "qwen3")},
    "gemma": Family("gemma", *_PATHS, _GATED, _GATED_ORDER, embedding_scale=_root_of_width),
    "granite": Family(
        "granite",
        *_PATHS,
        _GATED,
        _GATED_ORDER,
        embedding_scale=_embedding_multiplier,
        logit_scale=_inverse_logits_scaling,
    ),
    "phi3": Family("phi3", *_PATHS, _FUSED),
}

EXPORT_ONLY: Mapping[str, Family] = {name: Family(name, *_PATHS, _GATED) for name in ("gemma2", "gemma3_text")}
"""Loaded and exported, not compressed: soft caps, norms behind linears, a rotary embedding per kind of block."""

EXPORT_ONLY_ELSEWHERE = ("opt", "cohere", "gpt_neox", "stablelm", "starcoder2")
"""The same, with tensors in other places, which only transformers checks."""


def family_to_load(config: Mapping[str, Any], where: str) -> Family | None:
    """The family named by a config's `model_type`, of all that can be loaded; None of `EXPORT_ONLY_ELSEWHERE`.

    Raises:
        InputError: the family is not supported.
    """
    model_type = str(config.get("model_type", ""))
    if model_type in EXPORT_ONLY_ELSEWHERE:
        return None
    return EXPORT_ONLY.get(model_type) or family_of(config, where)


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """The family named by a config's `model_type`.

    Raises:
        InputError: the family is not supported; the message lists those that are.
    """
    model_type = str(config.get("model_type", ""))
    if model_type not in FAMILIES:
        supported = ", ".join(FAMILIES)
        found = shown(model_type or "unknown")
        raise InputError(f"{where}: model family {found} is not supported; supported: {supported}")
    return FAMILIES[model_type]
