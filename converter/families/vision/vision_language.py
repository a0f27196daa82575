"""What a vision-language model is to this package: a language model of a known family, and what lies beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..family import Gguf


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


def _text_config(whole: Mapping[str, Any]) -> Any:
    return whole.get("text_config")


@dataclass(frozen=True)
class VisionLanguage:
    """Where a vision-language model keeps its language model. The rest of it is kept as it is.

    Attributes:
        model_type: config.json's `model_type`.
        texts: families of the language models that it is read with; the first is that of a silent `text_config`.
        inside: path of the language model's body in transformers' model.
        stored: what names of the body's tensors begin with in files, the longest first.
        heads: what names of the head begin with in files.
        beside: places of what is kept as it is, inside transformers' model.
        tied: whether transformers ties the head where config.json is silent.
        tied_by_text: whether a language model that ties its head ties it here too.
        idle: keys of `text_config` that nothing of transformers' language model reads.
        language: config.json -> the configuration of the language model as its family has it.
        assumed: transformers' name of the configuration whose values hold where it is silent; its family's by default.
        gguf: how the language model is written to GGUF, where that is not as its family is.
        as_text: whether a picture's features have positions as tokens of text do.
        tiny_text: settings of the language model of the tiny model, beside those of its family.
        tiny: settings of the tiny random model that tests are made of, without those of the language model.
    """

    model_type: str
    texts: tuple[str, ...]
    inside: str
    stored: tuple[str, ...]
    heads: tuple[str, ...]
    beside: tuple[str, ...]
    tied: bool = False
    tied_by_text: bool = False
    idle: frozenset[str] = frozenset()
    language: Callable[[Mapping[str, Any]], Any] = _text_config
    assumed: str | None = None
    gguf: Gguf | None = None
    as_text: bool = True
    tiny_text: Mapping[str, Any] = field(default_factory=_nothing)
    tiny: Mapping[str, Any] = field(default_factory=_nothing)


TINY_VISION: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
"""Sizes of the tower of a tiny random model: pictures of four patches."""
