"""config.json of a factored checkpoint: a `model_type` of this package's own, so that others refuse the folder.

A transformers without this package would read a factored `llama` as a llama, find no weights for its linears and leave
them at random, with a warning. It refuses a `lowrank_llama`, and so does what is built on it; llama.cpp's converter
goes by `architectures` and refuses `LowRankLlamaForCausalLM`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METHOD = "lowrank"  # `quant_method` of a factored checkpoint
TYPE_PREFIX, ARCHITECTURE_PREFIX = "lowrank_", "LowRank"


def factored_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config.json under the names of a factored checkpoint; unchanged where it has them."""
    plain = plain_config(config)
    names: dict[str, Any] = {"model_type": TYPE_PREFIX + str(plain.get("model_type"))}
    if isinstance(plain.get("architectures"), list):
        names["architectures"] = [ARCHITECTURE_PREFIX + str(name) for name in plain["architectures"]]
    return {**plain, **names}


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json under the names of the model that was factored; unchanged where it has them."""
    found = dict(config)
    if isinstance(kind := found.get("model_type"), str):
        found["model_type"] = kind.removeprefix(TYPE_PREFIX)
    if isinstance(names := found.get("architectures"), list):
        found["architectures"] = [n.removeprefix(ARCHITECTURE_PREFIX) if isinstance(n, str) else n for n in names]
    return found
