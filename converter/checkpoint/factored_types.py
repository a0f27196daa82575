"""Teaches transformers the `model_type` of factored checkpoints: `AutoConfig` gives the family's own configuration.

Importing this module registers them; `lowrank_export/__init__.py` arranges for that.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

from ..families.table import FAMILIES
from ..families.vision.table import VISION_LANGUAGE
from .factored_config import METHOD, QUANT_METHOD, QUANTIZATION, TYPE_PREFIX, factored_config, plain_config


class FactoredConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Stands in `AutoConfig`'s table for the factored models of one family, whose own configuration it gives."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The family's configuration, see `saved_as_factored`."""
        plain = plain_config(config_dict)
        family: Any = CONFIG_MAPPING[plain["model_type"]]
        found = family.from_dict(plain, **kwargs)
        saved_as_factored(found[0] if isinstance(found, tuple) else found)
        return found


def saved_as_factored(config: Any) -> None:
    """Have a configuration saved under a factored checkpoint's names as long as it holds factors.

    Its class becomes a subclass with the same name, by which transformers' tables find models and tokenizers.
    """
    family: Any = type(config)
    config.__class__ = _saving_class(family)


@cache
def _saving_class(family: Any) -> Any:
    def renamed(said: dict[str, Any]) -> dict[str, Any]:
        held = plain_config(said).get(QUANTIZATION) or {}
        return factored_config(said) if held.get(QUANT_METHOD) == METHOD else said

    def to_dict(self: Any) -> dict[str, Any]:
        return renamed(family.to_dict(self))

    def to_diff_dict(self: Any) -> dict[str, Any]:
        return renamed(family.to_diff_dict(self))  # which puts the quantization_config in once more

    def reduce(self: Any) -> Any:
        return _restored, (family, self.__dict__)

    own = {"to_dict": to_dict, "to_diff_dict": to_diff_dict, "__reduce__": reduce, "__module__": family.__module__}
    return type(family.__name__, (family,), own)


def _restored(family: Any, state: dict[str, Any]) -> Any:
    """A pickled configuration."""
    made = family.__new__(_saving_class(family))
    made.__dict__.update(state)
    return made


def _register_families() -> None:
    for name in (*FAMILIES, *VISION_LANGUAGE):
        kind = TYPE_PREFIX + name
        AutoConfig.register(kind, type(f"Factored_{name}", (FactoredConfig,), {"model_type": kind}), exist_ok=True)


_register_families()
