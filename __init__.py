"""Compress a language model with AdaSVD, export it to GGUF and ONNX, and prove that it still works."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

from .converter.core.version import __version__

if TYPE_CHECKING:
    from .converter.model.loading import load as load
    from .converter.pipeline import compress as compress
    from .exporters.export import export as export
    from .exporters.registry import requested as requested
    from .runtime_tests.validate import validate as validate

_LAZY = {
    "load": ".converter.model.loading",
    "compress": ".converter.pipeline",
    "export": ".exporters.export",
    "requested": ".exporters.registry",
    "validate": ".runtime_tests.validate",
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    """Import the heavy parts when they are first used."""
    from importlib import import_module

    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name], __name__), name)


@wrapt.when_imported("transformers.models.auto.configuration_auto")
def _register_types(module: ModuleType) -> None:
    """Register the model types of factored checkpoints as soon as, and only if, transformers' own are there."""
    from .converter.checkpoint import factored_types  # noqa: F401


@wrapt.when_imported("transformers.quantizers.auto")
def _register(module: ModuleType) -> None:
    """Register the factored checkpoint with transformers as soon as, and only if, transformers is imported."""
    from .converter.checkpoint import transformers_integration  # noqa: F401
