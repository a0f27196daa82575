"""Does a file hold what its metadata promises? Blocks, shapes, vocabulary, and factors that belong together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...converter.checkpoint.layouts import C_SUFFIX, P_SUFFIX, PERM_SUFFIX, U_SUFFIX, V_SUFFIX
from ...converter.core.errors import InputError
from ...converter.families.family import Gguf
from ...converter.families.table import of_architecture
from ...converter.storage.gguf_header import Header
from .metadata import Hyperparameters
from .shapes import check_shapes
from .types import INTEGERS

Shapes = Mapping[str, tuple[int, ...]]
SAYS = "its metadata"
CHECKED_KINDS = ("weight", "bias", "lowrank_perm")  # others' files have scales and such beside them
SPARSE = ("deci",)  # blocks of nothing
LORA_A, LORA_B = ".lora_a", ".lora_b"
VOCABULARY = ("scores", "token_type")  # one entry per token, where they are there


def check_consistency(header: Header) -> None:
    """Compare tensors and metadata. Nothing but the header is looked at.

    Files of every architecture are held to their number of blocks, width and vocabulary; the families of this
    project to the shape of every tensor. A part of a split file promises nothing alone, nor does a vocabulary alone.

    Raises:
        InputError: what contradicts what.
    """
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    types = {tensor.name: tensor.type for tensor in header.tensors}
    _check_factors(shapes, types, header.metadata)
    kind = header.metadata.get("general.type", "model")
    if kind == "adapter":
        _check_adapter(shapes)
        return
    if kind == "imatrix":  # llama-imatrix names no architecture
        return
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise InputError("no general.architecture")
    if not shapes or kind != "model" or _number(header.metadata, "split.count", 1) > 1:
        return
    _check_blocks(shapes, header.metadata, architecture)
    _check_vocabulary(shapes, header.metadata)
    found = _hyperparameters(header.metadata, architecture)
    if found is not None:
        parts = {name: shape for name, shape in shapes.items() if name.endswith(CHECKED_KINDS)}
        check_shapes(parts, *found, says=SAYS)


def _check_factors(shapes: Shapes, types: Mapping[str, str], metadata: Mapping[str, Any]) -> None:
    """Both factors of each weight are there and have one rank, and nothing else stands for the same weight."""
    for name, shape in shapes.items():
        for suffix, partner in ((U_SUFFIX, V_SUFFIX), (V_SUFFIX, U_SUFFIX), (P_SUFFIX, C_SUFFIX), (C_SUFFIX, P_SUFFIX)):
            module = name.removesuffix(suffix)
            if module == name:
                continue
            if module + partner not in shapes:
                raise InputError(f"{name!r} has no {partner.removeprefix('.')} beside it")
            if module + ".weight" in shapes:
                raise InputError(f"{module!r} is there whole and in factors")
            if "lowrank.version" not in metadata:
                raise InputError(f"{name!r} is a factor, but there is no lowrank.version")
            other = shapes[module + partner]
            inner, outer = (shape[-1], other[-2:][0]) if suffix in (U_SUFFIX, C_SUFFIX) else (shape[-2:][0], other[-1])
            ordered = len(shape) in (2, 3) and shape[:-2] == other[:-2] and len(shape) == len(other)
            if not ordered or inner != outer:
                raise InputError(f"{name!r} {shape} and {module + partner!r} {other} are of different ranks")
        if name.endswith(PERM_SUFFIX):
            module = name.removesuffix(PERM_SUFFIX)
            rows = [shapes.get(module + suffix, (0,))[0] for suffix in (P_SUFFIX, C_SUFFIX)]
            if types[name] != INTEGERS or not all(rows) or shape != (sum(rows),):
                raise InputError(f"{name!r} {shape} {types[name]} is no order of the rows of {module!r}")


def _check_adapter(shapes: Shapes) -> None:
    for name, shape in shapes.items():
        for suffix, partner in ((LORA_A, LORA_B), (LORA_B, LORA_A)):
            if not name.endswith(suffix):
                continue
            other = shapes.get(name.removesuffix(suffix) + partner)
            if other is None:
                raise InputError(f"{name!r} has no {partner.removeprefix('.')} beside it")
            if suffix == LORA_A and "token_embd" not in name and shape[0] != other[-1]:
                raise InputError(f"{name!r} {shape} and its lora_b {other} are of different ranks")


def _check_blocks(shapes: Shapes, metadata: Mapping[str, Any], architecture: str) -> None:
    """As many blocks as promised, no more and no fewer."""
    key = f"{architecture}.block_count"
    blocks = _number(metadata, key, -1)
    present = {int(part) for name in shapes if name.startswith("blk.") and (part := name.split(".")[1]).isdigit()}
    if blocks < 0:
        if present:
            raise InputError(f"there are blocks, but no {key}")
        return
    if present and max(present) >= blocks:
        raise InputError(f"there is a block {max(present)}, but {key} is {blocks}")
    encoder = any(name.startswith(("enc.", "dec.")) for name in shapes)
    if len(present) < blocks and architecture not in SPARSE and not encoder:
        missing = next(block for block in range(blocks) if block not in present)
        raise InputError(f"block {missing} is missing: {key} is {blocks}")


def _check_vocabulary(shapes: Shapes, metadata: Mapping[str, Any]) -> None:
    """As many rows of the embedding as tokens, and an entry of each list per token."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        return
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise InputError("tokenizer.ggml.tokens is no list of texts")
    for name in VOCABULARY:
        values = metadata.get(f"tokenizer.ggml.{name}")
        if isinstance(values, list) and values and len(values) != len(tokens):
            raise InputError(f"there are {len(tokens)} tokens, but tokenizer.ggml.{name} has {len(values)} entries")
    rows = shapes.get("token_embd.weight", (len(tokens),))[0]
    if rows != len(tokens):
        raise InputError(f"there are {len(tokens)} tokens, but token_embd.weight has {rows} rows")


def _hyperparameters(metadata: Mapping[str, Any], architecture: str) -> tuple[Gguf, Hyperparameters] | None:
    """What a file of one of this project's families says of itself; None for others, and for experts."""
    of = of_architecture(architecture)
    if of is None or _number(metadata, f"{architecture}.expert_count", 0):
        return None

    def number(key: str, default: int | None = None) -> int:
        value = metadata.get(f"{architecture}.{key}", default)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{architecture}.{key} is {value!r}, no number of things")
        return value

    per_block = [f"{architecture}.{key}" for key in ("feed_forward_length", "attention.head_count")]
    if any(isinstance(metadata.get(key), list) for key in per_block):
        return None
    hidden, heads = number("embedding_length"), number("attention.head_count")
    tokens = metadata.get("tokenizer.ggml.tokens")
    return of, Hyperparameters(
        blocks=number("block_count"),
        context=number("context_length", 1),
        hidden=hidden,
        intermediate=number("feed_forward_length"),
        heads=heads,
        key_value_heads=number("attention.head_count_kv", heads),
        head_dim=number("attention.key_length", max(1, hidden // heads)),
        rotary_dim=0,
        vocabulary=len(tokens) if isinstance(tokens, list) else number("vocab_size"),
        norm_epsilon=0.0,
        layer_norm=False,
        rope={},
        tied=True,
        sliding_window=None,
        keys={},
    )


def _number(metadata: Mapping[str, Any], key: str, default: int) -> int:
    """A whole number of the metadata.

    Raises:
        InputError: it is there and is something else.
    """
    value = metadata.get(key, default)
    if isinstance(value, list):
        return default  # one value per block
    if not isinstance(value, int):
        raise InputError(f"{key} is {value!r}, no whole number")
    return value
