"""config.json of a factored checkpoint: names of this package's own, so that others refuse the folder.

A transformers without this package would read a factored `llama` as a llama, find no weights for its linears and leave
them at random, with a warning. It refuses a `lowrank_llama`, and so does what is built on it; llama.cpp's converter
goes by `architectures` and refuses `LowRankLlamaForCausalLM`. A class that is called by name, `LlamaForCausalLM`, looks
at neither; but it asks a `quantization_config` for its `quant_method`, passes over one that it does not know, and stops
where there is none. So there is none; the key `format` says what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

METHOD = "lowrank"  # `quant_method` of a factored checkpoint, in memory and in folders of before
QUANTIZATION, QUANT_METHOD, FORMAT = "quantization_config", "quant_method", "format"
TYPE_PREFIX, ARCHITECTURE_PREFIX = "lowrank_", "LowRank"


def factored_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config.json under the names of a factored checkpoint; unchanged where it has them."""
    plain = plain_config(config)
    names: dict[str, Any] = {"model_type": TYPE_PREFIX + str(plain.get("model_type"))}
    if isinstance(plain.get("architectures"), list):
        names["architectures"] = [ARCHITECTURE_PREFIX + str(name) for name in plain["architectures"]]
    held = plain.get(QUANTIZATION)
    if isinstance(held, dict) and held.get(QUANT_METHOD) == METHOD:
        rest = {key: value for key, value in held.items() if key != QUANT_METHOD}
        names[QUANTIZATION] = {FORMAT: METHOD, **rest}
    return {**plain, **names}


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json under the names of the model that was factored; unchanged where it has them."""
    found = dict(config)
    if isinstance(kind := found.get("model_type"), str):
        found["model_type"] = kind.removeprefix(TYPE_PREFIX)
    if isinstance(names := found.get("architectures"), list):
        found["architectures"] = [n.removeprefix(ARCHITECTURE_PREFIX) if isinstance(n, str) else n for n in names]
    held = found.get(QUANTIZATION)
    if isinstance(held, dict) and held.get(FORMAT) == METHOD and QUANT_METHOD not in held:
        found[QUANTIZATION] = {QUANT_METHOD: METHOD, **{key: value for key, value in held.items() if key != FORMAT}}
    return found
