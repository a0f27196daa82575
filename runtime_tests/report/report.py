"""What a validation found: one row per model and runtime, and everything needed to read the figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...converter.core.errors import ResourceError
from ...converter.storage.files import replacing
from ...exporters.artifact import to_document
from ..gates.gates import Gate, failed
from ..generation.writing import Writing
from ..metrics.footprint import Footprint
from ..metrics.parity import Parity
from ..metrics.perplexity import Perplexity
from ..metrics.tasks import TaskScore
from ..metrics.tokenizer_check import TokenizerCheck
from ..timing.speed import Speed

SCHEMA_VERSION = 3


@dataclass(frozen=True)
class Row:
    """One artifact in one runtime.

    Attributes:
        model: "factored", or "dense" for the uncompressed model beside it.
        backend: the runtime's name.
        path: the artifact.
        sha256: of its weights: of the file, or of the files that the runtime loads, by name.
        format, quantization, layout: as in `Artifact`.
        bytes: size of everything the runtime loads.
        parameters: stored weights, tied ones once.
        bytes_per_token: weights that decoding one token reads.
        perplexity: over the report's windows; NaN where the artifact did not run.
        parity: against the torch model it was exported from; None for that torch model itself.
        quality: against the dense torch model; None without one, and for dense rows.
        writing: continuations of the report's prompts.
        tokenizer: the artifact's against the reference's; None for the references.
        speeds: one per thread count and prompt length, the main one first; empty if not asked for.
        dense_speeds: of the dense artifact in the same runtime, timed in the same interleaved runs.
        tasks: zero-shot tasks that were asked for.
        footprint: load time and memory; None if speed was not asked for.
        bandwidth_share: bytes_per_token x decoded tokens per second / the machine's memory bandwidth; None on a GPU.
        gates: of this row.
        fallbacks: tensors that are stored in another type than asked for, a line per pair of types.
        error: why the runtime did not run it; empty.
    """

    model: str
    backend: str
    path: str
    sha256: str
    format: str
    quantization: str
    layout: str
    bytes: int
    parameters: int
    bytes_per_token: int
    perplexity: Perplexity
    parity: Parity | None = None
    quality: Parity | None = None
    writing: Writing | None = None
    tokenizer: TokenizerCheck | None = None
    speeds: tuple[Speed, ...] = ()
    dense_speeds: tuple[Speed, ...] = ()
    tasks: tuple[TaskScore, ...] = ()
    footprint: Footprint | None = None
    bandwidth_share: float | None = None
    gates: tuple[Gate, ...] = ()
    fallbacks: tuple[str, ...] = ()
    error: str = ""

    @property
    def bits_per_weight(self) -> float:
        """Bits the artifact spends per stored parameter, everything included; nan where that is not known."""
        return 8 * self.bytes / self.parameters if self.parameters else math.nan

    @property
    def speed(self) -> Speed | None:
        """The main one."""
        return self.speeds[0] if self.speeds else None

    @property
    def dense_speed(self) -> Speed | None:
        """The dense artifact's in the same run."""
        return self.dense_speeds[0] if self.dense_speeds else None

    @property
    def label(self) -> str:
        """How messages name the row."""
        return f"{self.backend} {self.quantization} ({self.model})"


@dataclass(frozen=True)
class LinearRank:
    """One factored linear of the reference.

    Attributes:
        block: number of the block, from 0.
        linear: name within the block.
        rank: of the factors.
        retention: kept / original parameters.
    """

    block: int
    linear: str
    rank: int
    retention: float


@dataclass(frozen=True)
class Report:
    """A whole validation.

    Attributes:
        rows: dense rows before factored ones, in each runtime and type.
        windows: {"count", "length", "predicted_tokens", "sha256", ...} of the token windows.
        settings: threads, device, dtype, seed, and what speed and generation were measured with.
        provenance: recipe, calibration, source and its licence, and what the caller passed in.
        versions: library -> version.
        machine: CPU model, cores, memory, memory bandwidth.
        ranks: of the reference, by block; empty for a dense one.
        thresholds: the gates that were asked for.
    """

    rows: tuple[Row, ...]
    windows: Mapping[str, Any]
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, str | int | float]
    ranks: tuple[LinearRank, ...] = ()
    thresholds: Mapping[str, Any] = field(default_factory=dict)

    @property
    def failures(self) -> tuple[tuple[Row, Gate], ...]:
        """Every gate that failed, with its row."""
        return tuple((row, gate) for row in self.rows for gate in failed(row.gates))

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return not self.failures

    @property
    def dense(self) -> Row | None:
        """The dense torch model's row."""
        return next((row for row in self.rows if row.model == "dense" and not row.gates), None)

    def with_provenance(self, facts: Mapping[str, Any]) -> Report:
        """The same, with more that the caller knows of its origin."""
        return replace(self, provenance={**self.provenance, **facts})

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready data; values that are no finite number become null. See report.schema.json."""
        rows = [{**to_document(row), "bits_per_weight": row.bits_per_weight} for row in self.rows]
        document = {"schema_version": SCHEMA_VERSION, "passed": self.passed, **asdict(self), "rows": rows}
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
