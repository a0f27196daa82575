"""Every family, and the ways in which the package looks one up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..core.errors import InputError, naming
from ..storage.documents import shown
from . import (
    cohere,
    gemma,
    gemma2,
    gemma3_text,
    gpt_neox,
    granite,
    llama,
    mistral,
    mixtral,
    olmo2,
    olmoe,
    opt,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
    stablelm,
    starcoder2,
)
from .family import Family, Gguf, Onnx
from .vision.table import VISION_LANGUAGE

FAMILIES: Mapping[str, Family] = {
    module.FAMILY.model_type: module.FAMILY
    for module in (
        llama,
        mistral,
        qwen2,
        qwen3,
        qwen3_moe,
        mixtral,
        olmoe,
        gemma,
        gemma2,
        gemma3_text,
        granite,
        phi3,
        smollm3,
        olmo2,
        starcoder2,
        cohere,
        opt,
        gpt_neox,
        stablelm,
    )
}
"""config.json's `model_type` -> family, in the order in which messages name them."""


INSIDE = "_inside"
"""Key of a language model's configuration: the `model_type` of the vision-language model that it was taken out of."""


def compressed() -> dict[str, Family]:
    """The families that the converter compresses."""
    return {name: family for name, family in FAMILIES.items() if family.compressed}


def gguf_families() -> dict[str, Family]:
    """The families that can be written to GGUF."""
    return {name: family for name, family in FAMILIES.items() if family.gguf is not None}


def gguf_inputs() -> tuple[str, ...]:
    """The families whose GGUF files are read."""
    return tuple(name for name, family in FAMILIES.items() if family.gguf is not None and family.gguf.read)


def factored_architectures() -> tuple[str, ...]:
    """The GGUF architectures whose factored files llama.cpp, patched, computes."""
    return tuple(dict.fromkeys(gguf.architecture for gguf in _all_gguf() if gguf.factored))


def of_architecture(architecture: str) -> Gguf | None:
    """How the first family of a GGUF architecture is written; None for an architecture of no family here."""
    return next((gguf for gguf in _all_gguf() if gguf.architecture == architecture), None)


def built_onnx() -> tuple[str, ...]:
    """The families that GenAI's model builder writes."""
    return tuple(name for name, family in FAMILIES.items() if family.onnx.builder is not None)


def traced_onnx() -> tuple[str, ...]:
    """The families that transformers' exporter traces, because the builder has no class for them."""
    return tuple(name for name, family in FAMILIES.items() if family.onnx.builder is None)


def family_to_load(config: Mapping[str, Any], where: str) -> Family:
    """The family named by a config's `model_type`, of all that can be loaded, with the experts that it says.

    Raises:
        InputError: the family is not supported, or its experts have no number.
    """
    model_type = str(config.get("model_type", ""))
    if model_type not in FAMILIES:
        return family_of(config, where)
    with naming(f"{where}:"):
        return FAMILIES[model_type].of(config)


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """The family named by a config's `model_type`, of those that can be compressed, with the experts that it says.

    Raises:
        InputError: the family is not supported; the message lists those that are. Or its experts have no number.
    """
    model_type = str(config.get("model_type", ""))
    known = compressed()
    if model_type not in known:
        found = shown(model_type or "unknown")
        names = ", ".join((*known, *VISION_LANGUAGE))
        raise InputError(f"{where}: model family {found} is not supported; supported: {names}")
    with naming(f"{where}:"):
        return known[model_type].of(config)


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A parsed config.json with the sizes that transformers assumes where it is silent, and one name for each key."""
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        return {**config}
    said = {**config}
    for other, key in family.aliases.items():
        if other in said and said.get(key, said[other]) == said[other]:  # else nobody reads it, which is refused
            said[key] = said.pop(other)
    return {**family.defaults, **said}


def gguf_of(config: Mapping[str, Any]) -> Gguf:
    """How the family named by a config's `model_type` is written to GGUF.

    Raises:
        InputError: it cannot be.
    """
    model_type, around = str(config.get("model_type")), VISION_LANGUAGE.get(str(config.get(INSIDE)))
    found = FAMILIES[model_type].gguf if model_type in FAMILIES else None
    if around is not None and around.gguf is not None:
        return around.gguf
    if found is None:
        why = f": {FAMILIES[model_type].no_gguf}" if model_type in FAMILIES else ""
        raise InputError(f"GGUF export supports {', '.join(gguf_families())}; this checkpoint is {model_type!r}{why}")
    return found


def onnx_of(config: Mapping[str, Any]) -> Onnx:
    """How the family named by a config's `model_type` is written to ONNX.

    Raises:
        InputError: it was never compared with torch; the message lists those that were.
    """
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        known = ", ".join((*built_onnx(), *traced_onnx()))
        raise InputError(f"model family {model_type!r} cannot be exported to ONNX; supported: {known}")
    return FAMILIES[model_type].onnx


def _all_gguf() -> Iterator[Gguf]:
    own = [family.gguf for family in FAMILIES.values()]
    inside = [around.gguf for around in VISION_LANGUAGE.values()]
    return (gguf for gguf in (*own, *inside) if gguf is not None)
