"""Checkpoint -> the memory that writing it as GGUF takes at its peak: arithmetic, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..converter.checkpoint.reader import CheckpointReader
from ..converter.core.errors import ResourceError, UsageError
from ..converter.families.table import gguf_of
from ..converter.machine.memory import peak_memory, resident_memory
from ..converter.planning.memory_plan import LIBRARIES, MARGIN, gigabytes
from ..converter.storage.safetensors_header import WIDTHS
from .gguf.metadata import read_hyperparameters
from .gguf.mixes import Quantisation
from .gguf.mixes import records as tensor_records
from .gguf.names import rotary_heads
from .gguf.writer import LAYOUTS, plan_tensors

FLOAT = 4


@dataclass(frozen=True)
class ExportMemory:
    """Forecast of this process' peak and the limit on it, in bytes; no limit where nobody set one."""

    forecast: int
    limit: int | None

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, beside the peak of this process so far."""
        return {"forecast_bytes": self.forecast, "limit_bytes": self.limit, "peak_bytes": peak_memory()}

    def line(self) -> str:
        """The forecast and the peak so far, in words."""
        limit = "" if self.limit is None else f", limit {gigabytes(self.limit)}"
        return f"peak memory {gigabytes(peak_memory())}, forecast {gigabytes(self.forecast)}{limit}"


def plan_export_memory(
    checkpoint: Path,
    exports: Sequence[tuple[str, str]],
    types: tuple[str | None, str | None],
    *,
    layout: str,
    rounding: str,
    limit: int | None,
) -> ExportMemory | None:
    """The forecast of an export, held against a limit before the work.

    Args:
        checkpoint: its folder.
        exports: (format, type) pairs.
        types: of the embedding and the head, where not those of the type.
        layout, rounding: of GGUF files.
        limit: bytes this process may take.

    Returns:
        None where there is no forecast: ONNX, aware rounding, and layout "adapter".

    Raises:
        UsageError: a limit on such an export.
        ResourceError: the forecast is beyond the limit.
    """
    if layout not in LAYOUTS or rounding != "plain" or any(format != "gguf" for format, _ in exports):
        if limit is not None:
            raise UsageError("--max-memory: of exports, GGUF of layout native or dense, rounded plainly, has a limit")
        return None
    tensors = max(_largest(checkpoint, Quantisation(type, *types), layout) for _, type in exports)
    found = ExportMemory(resident_memory() + LIBRARIES + round(MARGIN * tensors), limit)
    if limit is not None and found.forecast > limit:
        raise ResourceError(
            f"--max-memory {gigabytes(limit)}: {checkpoint}: its largest tensor takes the export to about "
            f"{gigabytes(found.forecast)}; allow that much"
        )
    return found


def _largest(checkpoint: Path, asked: Quantisation, layout: str) -> int:
    """Bytes of the tensor that takes most: as stored, in float32, multiplied out, rows in another order, encoded."""
    reader = CheckpointReader(checkpoint)
    of, hyper = gguf_of(reader.config), read_hyperparameters(reader.config)
    native = layout == "native" and bool(reader.ranks)
    sources = plan_tensors(reader, of, hyper, native=native)
    records = tensor_records({source.name: source.shape for source in sources}, asked)
    found = [0]
    for source, record in zip(sources, records, strict=True):
        widths = [WIDTHS[reader.dtype(part)] for part in source.parts]
        read = sum(
            prod(reader.shape(part)) * (width if width == FLOAT else width + FLOAT)
            for part, width in zip(source.parts, widths, strict=True)
        )
        reordered = rotary_heads(source.name, of, hyper.heads, hyper.key_value_heads) is not None
        copies = int(len(source.parts) > 1) + int(reordered)
        found.append(read + copies * FLOAT * prod(source.shape) + 2 * record.bytes)
    return max(found)
