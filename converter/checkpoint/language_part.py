"""The language model inside a vision-language checkpoint: its configuration, and its tensors' names with and without.

Readers see a language model alone, under the names of its family. What lies beside it is known by its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..core.errors import InputError
from ..families.family import Family
from ..families.table import FAMILIES, INSIDE
from ..families.vision.vision_language import VisionLanguage
from ..storage.documents import shown
from .factored_config import QUANTIZATION
from .prefixes import Prefix

TEXT, TIED, RANKS = "text_config", "tie_word_embeddings", "ranks"
CARRIED = (QUANTIZATION, "dtype", "torch_dtype")
"""Keys of config.json that hold for the language model too."""
TAKEN = (QUANTIZATION, "dtype", TIED)
"""Keys of a language model's configuration that hold for the whole."""


def language_config(whole: Mapping[str, Any], of: VisionLanguage, where: str) -> dict[str, Any]:
    """The config.json that the language model would have alone.

    Args:
        whole: config.json under plain names.
        of: what it names.
        where: for errors.

    Raises:
        InputError: it describes no language model, or one that is not read inside such a model.
    """
    found = of.language(whole)
    if not isinstance(found, dict):
        raise InputError(f"{where}: config.json says {TEXT} is {shown(found)}, no configuration of a language model")
    text = {
        "model_type": of.texts[0],
        INSIDE: of.model_type,
        **{key: value for key, value in found.items() if key not in of.idle},
    }
    if text["model_type"] not in of.texts:
        raise InputError(
            f"{where}: a {of.model_type} model around a language model of family {shown(text['model_type'])} is not "
            f"supported; supported: {', '.join(of.texts)}"
        )
    tied = bool(whole.get(TIED, of.tied)) or (of.tied_by_text and bool(text.get(TIED)))
    text = {**_assumed(FAMILIES[text["model_type"]], of.assumed), **text, TIED: tied}
    text |= {key: whole[key] for key in CARRIED if key in whole}
    if isinstance(held := text.get(QUANTIZATION), dict) and isinstance(ranks := held.get(RANKS), dict):
        text[QUANTIZATION] = {**held, RANKS: {_inner_name(str(name), of): rank for name, rank in ranks.items()}}
    return text


def whole_config(whole: Mapping[str, Any], text: Mapping[str, Any], of: VisionLanguage) -> dict[str, Any]:
    """The config.json of a vision-language model whose language model became another; the reverse of `language_config`.

    Args:
        whole: its config.json.
        text: of the language model that takes its place; the head, the stored type and the factors are taken over.
        of: what `whole` names.
    """
    found = {**whole, **{key: text[key] for key in TAKEN if key in text}}
    if of.tied_by_text and isinstance(found.get(TEXT), dict) and TIED in found[TEXT]:
        found[TEXT] = {**found[TEXT], TIED: found[TIED]}
    if isinstance(held := found.get(QUANTIZATION), dict) and isinstance(ranks := held.get(RANKS), dict):
        found[QUANTIZATION] = {**held, RANKS: {whole_name(name, of): rank for name, rank in ranks.items()}}
    return found


def whole_name(name: str, of: VisionLanguage) -> str:
    """What transformers' vision-language model calls a module or tensor of its language model."""
    body = _body(of)
    return of.inside + name.removeprefix(body) if name.startswith(body + ".") else name


def language_prefixes(of: VisionLanguage) -> tuple[Prefix, ...]:
    """What names in files begin with, and those of the language model."""
    family = FAMILIES[of.texts[0]]
    bodies = (Prefix(stored, f"{_body(of)}.") for stored in of.stored)
    return (*(Prefix(stored, f"{family.head}.") for stored in of.heads), *bodies)


def lies_beside(name: str, of: VisionLanguage) -> bool:
    """Whether a tensor is of the tower or what joins it to the language model, by its name in files."""
    return re.match(rf"(model\.)?({'|'.join(map(re.escape, of.beside))})\.", name) is not None


def _inner_name(name: str, of: VisionLanguage) -> str:
    return _body(of) + name.removeprefix(of.inside) if name.startswith(of.inside + ".") else name


def _body(of: VisionLanguage) -> str:
    """Path of the body in the language model alone."""
    return FAMILIES[of.texts[0]].embedding.rpartition(".")[0]


def _assumed(family: Family, name: str | None) -> dict[str, Any]:
    """What transformers assumes of a language model where `text_config` is silent, of the keys that matter here."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    known: Any = CONFIG_MAPPING[name or family.model_type]
    values = {key: getattr(known, key, None) for key in family.settings}
    return {key: value for key, value in values.items() if isinstance(value, (bool, int, float, str))}
