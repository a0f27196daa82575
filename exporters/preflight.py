"""Requests held against the model and the machine before the work: what they accept, and memory, by arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..converter.checkpoint.reader import CheckpointReader
from ..converter.core.errors import InputError, ResourceError, UsageError
from ..converter.families.table import family_to_load
from ..converter.machine.memory import peak_memory, resident_memory
from ..converter.model.config_check import check_config
from ..converter.planning.disk_forecast import Shapes
from ..converter.planning.memory_plan import LIBRARIES, MARGIN, gigabytes
from ..converter.storage.files import check_output
from .chosen import CHOSEN
from .registry import TARGETS
from .target import ExportRequest


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


def plan_export_memory(checkpoint: Path, requests: Sequence[ExportRequest], limit: int | None) -> ExportMemory | None:
    """The forecast of exports, one after another, held against a limit before the work.

    Args:
        checkpoint: its folder.
        requests: what is exported.
        limit: bytes this process may take.

    Returns:
        None where one of them has no forecast: ONNX, aware rounding, and layout "adapter".

    Raises:
        UsageError: a limit on such an export.
        ResourceError: the forecast is beyond the limit.
    """
    tensors = [request.peak_memory(checkpoint) for request in requests]
    known = [bytes for bytes in tensors if bytes is not None]
    if len(known) < len(tensors):
        if limit is not None:
            raise UsageError("--max-memory: of exports, GGUF of layout native or dense, rounded plainly, has a limit")
        return None
    found = ExportMemory(resident_memory() + LIBRARIES + round(MARGIN * max(known)), limit)
    if limit is not None and found.forecast > limit:
        raise ResourceError(
            f"--max-memory {gigabytes(limit)}: {checkpoint}: its largest tensor takes the export to about "
            f"{gigabytes(found.forecast)}; allow that much"
        )
    return found


def check_exports(reader: CheckpointReader, requests: Sequence[ExportRequest], *, exported: bool = False) -> None:
    """Ask every export whether it will accept what becomes of a model, before any work on it.

    From config.json, names and shapes of tensors, and the tokenizer's files alone; no weight is read.

    Args:
        reader: of the dense model, or of the checkpoint that is exported.
        requests: what will be made of it.
        exported: whether it is this very checkpoint that is exported.

    Raises:
        UsageError, InputError, ResourceError: one of them would refuse it; the line is its own.
    """
    check_accepted(reader, requests)
    for request in requests:
        request.check(reader)
        if exported:
            request.check_checkpoint(reader)


def check_accepted(reader: CheckpointReader, requests: Sequence[ExportRequest]) -> None:
    """As `check_exports`, where it is not said yet how weights will be rounded.

    Raises:
        UsageError, InputError, ResourceError: one of them would refuse the model; the line is its own.
    """
    _check_described(reader)
    for request in requests:
        _check(request, reader)


def check_places(requests: Sequence[ExportRequest], out: Path, force: bool) -> None:
    """Refuse, before anything is written, what an export would not replace.

    Args:
        requests: what is written.
        out: into which folder.
        force: whether what is there may be replaced.

    Raises:
        UsageError: something is there already, or something that is no export and stays even with `force`.
    """
    for request in requests:
        path = out / request.name
        check_output(path, force)
        empty = path.is_dir() and not any(path.iterdir())
        if path.exists() and not empty and not TARGETS[request.format].recognizes(path):
            raise UsageError(
                f"{path}: is no {request.format.upper()} export; remove it yourself, or choose another --out"
            )


def refusals(reader: CheckpointReader, requests: Sequence[ExportRequest]) -> list[str]:
    """A line for each export that would refuse what becomes of a model, see `check_exports`.

    Raises:
        InputError: the model is not what its config.json says.
    """
    _check_described(reader)
    found = []
    for request in requests:
        try:
            _check(request, reader)
        except (UsageError, InputError, ResourceError) as refused:
            found.append(f"{request.name}: {refused}")
    return found


def export_bytes(requests: Sequence[ExportRequest], shapes: Shapes, config: Mapping[str, Any]) -> int:
    """What exports take on the disk at least, together; those whose types are yet to be chosen count nothing.

    Args:
        requests: what is written.
        shapes: tensor name in the checkpoint -> shape.
        config: its config.json.
    """
    return sum(request.forecast(shapes, config).bytes for request in requests if request.quantization != CHOSEN)


def _check(request: ExportRequest, reader: CheckpointReader) -> None:
    request.check_model(reader.config)
    request.check_source(reader)


def _check_described(reader: CheckpointReader) -> None:
    family = family_to_load(reader.config, str(reader.path))
    if family.groups:
        check_config(reader, family)
