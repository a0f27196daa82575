"""What a model family is to this package: a frozen value that its file fills in and every part reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from .experts import Experts, InputGroup

__all__ = ["Experts", "Family", "Gguf", "InputGroup", "Onnx", "Setting", "SharedOrder"]

Value = bool | int | float | list[bool] | list[int]
"""Of a key of a GGUF file."""


def _one(config: Any) -> float:
    return 1.0


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


def _no_keys(config: Mapping[str, Any]) -> Mapping[str, Value]:
    return MappingProxyType({})


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
class Setting:
    """A key of config.json that changes what the model computes, and the values that each target carries.

    A target carries every value where its field is None; a key that is absent or null is carried by all.

    Attributes:
        torch: values for which this package's reading of the model block by block is the model's own.
        gguf: values that the family's GGUF architecture expresses.
        onnx: values that the ONNX graph expresses.
    """

    torch: tuple[Any, ...] | None = None
    gguf: tuple[Any, ...] | None = None
    onnx: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Gguf:
    """How the family is written to GGUF.

    Attributes:
        architecture: `general.architecture` in the file.
        block: module path inside a block -> name inside a GGUF block.
        outside: module path in the model -> GGUF name, for what lies outside the blocks.
        blocks: path of the list of transformer blocks.
        layer_norm: key of config.json for the epsilon of norms that subtract the mean; "" where none does.
        wide_norms: norms of queries and keys are over all heads together.
        fused_gate: `ffn_up` holds the rows of gate, and below them those of up.
        interleaved: llama.cpp rotates neighboring rows (2i, 2i + 1) of q and k instead of the halves of a head, so
            their rows are stored in another order.
        windows: llama.cpp attends to a sliding window as the file says.
        norm_shift: what llama.cpp wants added to the weights of norms.
        rope_base: of the rotary embedding, where config.json is silent.
        partial_rotary: llama.cpp rotates as much of a head as the file says.
        long_rotary: llama.cpp knows "longrope", two sets of factors for short and for long texts.
        keys: configuration -> metadata beside that of all families, without the architecture before the names; raises
            InputError where the architecture cannot express it.
        factored: all linears pass llama.cpp's `build_lora_mm`, verified against torch logit by logit; a factored
            weight used elsewhere would end the process inside ggml.
        restored: what a file says of itself, without the architecture before the names -> settings of the configuration
            that transformers leaves out when it reads one.
        tokenizer: `tokenizer.ggml.model` of files that serve as input; "" where transformers reads every kind.
        read: GGUF files of the family were compared with the model they were made from, and serve as input.
    """

    architecture: str
    block: Mapping[str, str]
    outside: Mapping[str, str]
    blocks: str = "model.layers"
    layer_norm: str = ""
    wide_norms: bool = False
    fused_gate: bool = False
    interleaved: bool = False
    windows: bool = False
    norm_shift: float = 0.0
    rope_base: float = 10000.0
    partial_rotary: bool = False
    long_rotary: bool = False
    keys: Callable[[Mapping[str, Any]], Mapping[str, Value]] = _no_keys
    factored: bool = False
    restored: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _no_keys
    tokenizer: str = ""
    read: bool = False


@dataclass(frozen=True)
class Onnx:
    """How the family is written to ONNX. Each was compared with torch in this project's tests.

    Attributes:
        builder: the class of ONNX Runtime GenAI's model builder; None where the builder has none, and transformers'
            own exporter traces the model.
        genai_type: what GenAI calls the family, where it is not made from the architecture's name.
        adapt: rewrites a copy of the configuration into what the builder's class reads.
    """

    builder: str | None = None
    genai_type: str | None = None
    adapt: Callable[[Any], None] | None = None


@dataclass(frozen=True)
class Family:
    """Where a model family keeps what the converter touches. Paths are module names inside the model.

    Attributes:
        model_type: config.json's `model_type`.
        blocks: path of the list of transformer blocks.
        embedding, rotary, norm, head: paths of the token embedding, the rotary embedding, the final norm, the head.
        groups: the linears of a block, in the order a block's forward reaches them; none where only transformers
            knows them. Those of experts follow in what `of` gives.
        experts: of a block, where it is a mixture of experts.
        shared_orders: linears whose features may be put into another order.
        compressed: the converter compresses it; others are loaded and exported.
        positions: path of the learned embedding of positions, which is added to that of tokens; "" where there is none.
        norms: paths inside a block of what has a weight and is no linear, routers included.
        norm_biases: norms have a bias too.
        switched_norms: path of a further norm -> the key of config.json that puts it there.
        stored_names: part of a tensor's name in files -> what it is called here and in transformers.
        biases: path of a linear -> the key of config.json that gives it a bias; "" for one that always has one.
        inner: key of config.json for the width between the linears of the MLP.
        embedding_scale: configuration -> what embeddings are multiplied by.
        logit_scale: configuration -> what the head's outputs are multiplied by.
        gguf: how it is written to GGUF; None where it cannot be.
        no_gguf: why not.
        onnx: how it is written to ONNX.
        settings: keys of config.json that change what the model computes.
        aliases: other names of keys of config.json -> the names here.
        defaults: sizes that transformers assumes where config.json is silent, and that do not follow from others.
        tiny: settings of the tiny random model that tests are made of, where they are not those of all families.
    """

    model_type: str
    blocks: str
    embedding: str
    rotary: str
    norm: str
    head: str
    groups: tuple[InputGroup, ...] = ()
    experts: Experts | None = None
    shared_orders: tuple[SharedOrder, ...] = ()
    compressed: bool = False
    positions: str = ""
    norms: tuple[str, ...] = ()
    norm_biases: bool = False
    switched_norms: Mapping[str, str] = field(default_factory=_nothing)
    stored_names: Mapping[str, str] = field(default_factory=_nothing)
    biases: Mapping[str, str] = field(default_factory=_nothing)
    inner: str = "intermediate_size"
    embedding_scale: Callable[[Any], float] = _one
    logit_scale: Callable[[Any], float] = _one
    gguf: Gguf | None = None
    no_gguf: str = ""
    onnx: Onnx = Onnx()
    settings: Mapping[str, Setting] = field(default_factory=_nothing)
    aliases: Mapping[str, str] = field(default_factory=_nothing)
    defaults: Mapping[str, int] = field(default_factory=_nothing)
    tiny: Mapping[str, Any] = field(default_factory=_nothing)

    def of(self, config: Mapping[str, Any]) -> Family:
        """The family of one model: with the linears of as many experts as its config.json says.

        Raises:
            InputError: it does not say, or no such number.
        """
        if self.experts is None:
            return self
        return replace(self, groups=(*self.groups, *self.experts.groups(self.experts.number(config))))

    def stack(self, linear: str) -> str:
        """What a linear is called together with those of other experts; a linear of no expert stands alone."""
        return linear if self.experts is None else self.experts.stack(linear)

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
