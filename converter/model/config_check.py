"""config.json held against the tensors' headers, before anything is built in the sizes that it names."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ..checkpoint.layouts import C_SUFFIX, P_SUFFIX, U_SUFFIX, V_SUFFIX
from ..checkpoint.reader import CheckpointReader
from ..core.errors import InputError
from ..families.family import Family
from ..families.parts import LINEAR_SIZES
from ..families.settings import check_settings
from ..storage.documents import shown
from .tensor_check import DERIVED, check_tensors, check_types

LONGEST = 2**31  # tokens that a model may claim to hold
Shape = tuple[int, ...]


def check_config(reader: CheckpointReader, family: Family) -> frozenset[str]:
    """Hold a checkpoint, dense or factored, against its config.json, see `check_sizes`, and account for every tensor.

    Returns:
        Names of the tensors that are left out, because they are derived or change nothing.

    Raises:
        InputError: what does not agree, and what would be passed over: see `check_settings` and `check_tensors`.
    """
    check_settings(reader.config, family, str(reader.path))
    check_types(reader, (name for name in reader.names if not DERIVED.search(name)))
    place = re.compile(re.escape(family.blocks) + r"\.(\d{1,9})\.")
    check_sizes(
        reader.config,
        str(reader.path),
        family,
        blocks={int(match[1]) for name in reader.names if (match := place.match(name))},
        stored=lambda module: _stored(reader, module),
    )
    return check_tensors(reader, family)


def check_sizes(
    config: Mapping[str, Any],
    where: str,
    family: Family,
    *,
    blocks: Collection[int],
    stored: Callable[[str], Shape],
    document: str = "config.json",
) -> None:
    """Blocks, vocabulary and the shape of every linear and of the embedding are what config.json says.

    Args:
        config: its content.
        where: named in errors.
        family: of the model.
        blocks: numbers of the blocks that there are tensors of.
        stored: module -> shape of its weight; raises InputError where there is none.
        document: what says it, for errors.

    Raises:
        InputError: a size is not a positive integer, or not that of the tensors; names it.
    """

    def size(key: str, otherwise: int | None = None) -> int:
        value = config.get(key)
        if value is None and otherwise is not None:
            return otherwise
        if type(value) is not int or not 0 < value < 2**63:
            raise InputError(f"{where}: {document} says {key} is {shown(value)}, no number of things")
        return value

    def compare(module: str, expected: tuple[int, int]) -> None:
        found = stored(module)
        if found != expected:
            raise InputError(f"{where}: {module} has shape {shown(found)}, but {document} says {expected}")

    hidden, inner, count = size("hidden_size"), size(family.inner), size("num_hidden_layers")
    heads = size("num_attention_heads")
    keys, head_dim = size("num_key_value_heads", heads), size("head_dim", max(1, hidden // heads))
    if size("max_position_embeddings") > LONGEST:
        raise InputError(f"{where}: {document} says max_position_embeddings is more than {LONGEST:,}")
    if heads % keys:
        raise InputError(f"{where}: {document} says {heads} attention heads share {keys} keys: not divisible")
    compare(family.embedding, (size("vocab_size"), hidden))
    if len(blocks) != count or set(blocks) != set(range(count)):
        raise InputError(f"{where}: holds {len(blocks)} blocks, but {document} says {count}")
    sizes = {
        "hidden": hidden,
        "queries": heads * head_dim,
        "keys": keys * head_dim,
        "queries and keys": (heads + 2 * keys) * head_dim,
        "inner": inner,
        "twice inner": 2 * inner,
    }
    linears = dict(LINEAR_SIZES)
    if (experts := family.experts) is not None:
        sizes["of an expert"] = size(experts.inner)
        linears |= dict.fromkeys((experts.gate, experts.up), ("of an expert", "hidden"))
        linears[experts.down] = ("hidden", "of an expert")
        experts.used_per_token(config)
    for block in range(count):
        for linear in family.linears:
            rows, columns = linears[linear.rpartition(".")[2]]
            compare(family.linear_name(block, linear), (sizes[rows], sizes[columns]))
        if experts is not None:
            compare(family.linear_name(block, experts.router), (experts.number(config), hidden))


def _stored(reader: CheckpointReader, module: str) -> Shape:
    """The shape of a weight, or of the product of its factors."""
    if module not in reader.ranks:
        return reader.shape(module + ".weight")
    if reader.layout == "pivot":
        (pivots, columns), others = reader.shape(module + P_SUFFIX), reader.shape(module + C_SUFFIX)[0]
        return pivots + others, columns
    return reader.shape(module + U_SUFFIX)[0], reader.shape(module + V_SUFFIX)[1]
