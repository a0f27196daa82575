"""The formats that a checkpoint is exported to: one row each. Whatever depends on a format asks its row."""

from __future__ import annotations

from typing import Any

from ..converter.core.errors import UsageError
from ..converter.core.nearest import nearest
from .gguf.target import GgufTarget
from .onnx.target import OnnxTarget
from .target import ExportRequest, ExportTarget

TARGETS: dict[str, ExportTarget] = {target.format: target for target in (GgufTarget(), OnnxTarget())}
"""By format; the first is what is exported where nothing was asked for."""


def target(format: str) -> ExportTarget:
    """The row of a format.

    Raises:
        UsageError: unknown; names the nearest.
    """
    if format not in TARGETS:
        raise UsageError(f"--format {format}: unknown format{nearest(format, TARGETS)}")
    return TARGETS[format]


def requested(format: str, quantization: str | None = None, **fields: Any) -> ExportRequest:
    """One export, asked for by format, type and the fields of its request.

    Raises:
        UsageError: unknown format or type, or fields that contradict each other.
    """
    return target(format).request(quantization, **fields)
