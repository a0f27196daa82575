"""What a validation found: one row per model and runtime, and everything needed to read the figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..converter.errors import ResourceError
from ..converter.files import replacing
from .gates import Gate, failed
from .generation import Sample
from .parity import Parity
from .perplexity import Perplexity
from .speed import Speed

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Row:
    """One artifact in one runtime.

    Attributes:
        model: "factored", or "dense" for the uncompressed model beside it.
        backend: the runtime's name.
        path: the artifact.
        format, quantisation, layout: as in `Artifact`.
        bytes: size of everything the runtime loads.
        parameters: stored weights, tied ones once.
        perplexity: over the report's windows.
        parity: against the torch model it was exported from; None for that torch model itself.
        quality: against the dense torch model; None without one, and for dense rows.
        speed: None if speed was not asked for.
        dense_speed: of the dense artifact in the same runtime, timed in the same interleaved run.
        sample: greedy continuation of the report's prompt.
        gates: parity gates of this row.
        fallbacks: tensors that are stored in another type than asked for, a line per pair of types.
    """

    model: str
    backend: str
    path: str
    format: str
    quantisation: str
    layout: str
    bytes: int
    parameters: int
    perplexity: Perplexity
    parity: Parity | None
    quality: Parity | None
    speed: Speed | None
    dense_speed: Speed | None
    sample: Sample | None
    gates: tuple[Gate, ...]
    fallbacks: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        """Bits the artifact spends per stored parameter, everything included."""
        return 8 * self.bytes / self.parameters

    @property
    def label(self) -> str:
        """How messages name the row."""
        return f"{self.backend} {self.quantisation} ({self.model})"


@dataclass(frozen=True)
class Report:
    """A whole validation.

    Attributes:
        rows: dense rows before factored ones, in each runtime and type.
        windows: {"count", "length", "predicted_tokens", "sha256"} of the token windows.
        settings: threads, device, dtype, and what speed and generation were measured with.
        provenance: seeds and hashes the caller passed in, as they came.
        versions: library -> version.
        machine: CPU model, cores, memory.
    """

    rows: tuple[Row, ...]
    windows: Mapping[str, Any]
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, str | int]

    @property
    def failures(self) -> tuple[tuple[Row, Gate], ...]:
        """Every gate that failed, with its row."""
        return tuple((row, gate) for row in self.rows for gate in failed(row.gates))

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready data; values that are no finite number become null."""
        rows = [{**asdict(row), "bits_per_weight": row.bits_per_weight} for row in self.rows]
        document = {
            "schema_version": SCHEMA_VERSION,
            "passed": self.passed,
            "rows": rows,
            "windows": dict(self.windows),
            "settings": dict(self.settings),
            "provenance": dict(self.provenance),
            "versions": dict(self.versions),
            "machine": dict(self.machine),
        }
        without_nan: dict[str, Any] = finite(document)
        return without_nan


def write_report(report: Report, path: Path) -> None:
    """Write the report as JSON, replacing what is there: complete or not at all, also when interrupted.

    Raises:
        ResourceError: the file cannot be written (disk full, no permission).
    """
    write_json(report.to_json(), path)


def write_json(document: Mapping[str, Any], path: Path) -> None:
    """Write a document without NaN; see `write_text`."""
    write_text(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write a file, replacing what is there: complete or not at all, also when interrupted.

    Raises:
        ResourceError: the file cannot be written (disk full, no permission).
    """
    try:
        with replacing(path, force=True, folder=False) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror or error}") from None


def finite(value: Any) -> Any:
    """Replace numbers that JSON cannot hold by null, tuples by lists and paths by strings."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, Path) else value
