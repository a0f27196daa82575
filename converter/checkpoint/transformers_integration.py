"""Teaches transformers the factored checkpoint: `AutoModelForCausalLM.from_pretrained(dir)` gives the factored model.

transformers lets a package register a quantization method by name. `lowrank` swaps the named linears for
`LowRankLinear` or `PivotLinear` before the weights are read, so the model is never at its full size, and
`save_pretrained` writes the factors back. config.json has a `model_type` of its own for each family, see
`factored_types.py`. Importing this module registers the method; `lowrank_export/__init__.py` arranges for that.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..families.table import FAMILIES
from ..storage.safetensors_header import read_header
from .expert_modules import separate_experts
from .factored_config import METHOD
from .layouts import LAYOUTS, PERM_SUFFIX
from .lowrank_linear import replace_linears


@register_quantization_config(METHOD)
class LowRankConfig(QuantizationConfigMixin):
    """The `quantization_config` of a factored checkpoint's config.json."""

    def __init__(
        self,
        layout: str = "two-factor",
        ranks: dict[str, int] | None = None,
        retention: float = 1.0,
        method: str = "",
        quant_method: str = METHOD,
    ) -> None:
        self.quant_method: Any = quant_method  # transformers types it as an enumeration of its own methods
        self.layout = layout
        self.ranks = dict(ranks or {})
        self.retention = retention
        self.method = method
        if layout not in LAYOUTS:
            raise ValueError(f"factored checkpoint has layout {layout!r}; this version reads: {', '.join(LAYOUTS)}")

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds."""
        return {
            "quant_method": self.quant_method,
            "layout": self.layout,
            "method": self.method,
            "retention": self.retention,
            "ranks": dict(self.ranks),
        }


@register_quantizer(METHOD)
class LowRankQuantizer(HfQuantizer):
    """Builds the factored skeleton before weights are read; there is nothing to quantize."""

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        config: Any = self.quantization_config
        files = kwargs.get("checkpoint_files") or ()
        if model.config.model_type in FAMILIES:
            separate_experts(model, FAMILIES[model.config.model_type])
        in_order = _in_order(config.ranks, files) if config.layout == "pivot" else frozenset()
        try:
            replace_linears(model, config.ranks, config.layout, in_order)
        except KeyError as error:
            raise ValueError(f"factored checkpoint names a linear that the model does not have: {error}") from error
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """No experts are stacked: names are changed, tensors are not."""
        from transformers.core_model_loading import WeightRenaming

        return [step for step in weight_conversions if isinstance(step, WeightRenaming)]

    def is_serializable(self) -> bool:
        """`save_pretrained` writes the factors."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Factors are ordinary parameters."""
        return True


def _in_order(linears: Iterable[str], files: Iterable[str]) -> frozenset[str]:
    """The linears for which the files hold no permutation, under whatever prefix: it is the identity."""
    stored = {_tail(name) for file in files for name in read_header(Path(file)) if name.endswith(PERM_SUFFIX)}
    return frozenset(name for name in linears if _tail(name + PERM_SUFFIX) not in stored)


def _tail(name: str) -> str:
    """A tensor's name from the number of its block on."""
    return name.rpartition(".layers.")[2].rpartition("lm_head")[2]
