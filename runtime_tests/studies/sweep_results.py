"""What a sweep found: sizes, quality and speed of many exports; which are worth having, and which one to take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...converter.core.errors import GateError, InputError, UsageError
from ...converter.storage.documents import MAX_JSON_BYTES, parse_json, read_text_file, shown
from ...exporters.artifact import from_document, to_document
from ..metrics.parity import Parity
from ..metrics.perplexity import Perplexity
from ..report.report import finite
from ..timing.speed import Rate, Speed
from .rows import restored

SCHEMA_VERSION = 1
SIZED = "size"  # the method of files for which rank and type of every linear were chosen together
PLAIN = "dense"  # the method of exports of the uncompressed model: plain quantization
AWARE = "dense, aware"  # the same, rounded with a text


@dataclass(frozen=True)
class SweepRow:
    """One export of one compression, in one runtime.

    Attributes:
        method: its name, or "dense" for the uncompressed model in this type, "dense, aware" where its rounding ran a
            text.
        retention: as asked for; 1 for dense.
        kept: the same, as reached.
        format, quantization, backend: of the export, and what it was measured in.
        bytes, bits_per_weight: of the export.
        perplexity: over the evaluation windows.
        quality: divergence from the dense torch model.
        speed: timed alone; None if speed was not asked for.
        compress_seconds: of CPU time; 0 for dense.
        size: bytes that were asked for, in place of a retention.
    """

    method: str
    retention: float
    kept: float
    format: str
    quantization: str
    backend: str
    bytes: int
    bits_per_weight: float
    perplexity: Perplexity
    quality: Parity
    speed: Speed | None
    compress_seconds: float
    size: int | None = None

    @property
    def label(self) -> str:
        """How messages name the row."""
        if self.size is not None:
            return f"{self.method} {self.size / 1e6:g} MB, {self.format}"
        size = "" if self.method in (PLAIN, AWARE) else f" {self.retention:g}"
        return f"{self.method}{size}, {self.format} {self.quantization}"

    @property
    def kld(self) -> float:
        """Mean KL divergence from the dense torch model; infinite for NaN."""
        return self.quality.mean_kld if math.isfinite(self.quality.mean_kld) else math.inf

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SweepRow:
        """What `to_document` made, after JSON."""
        speed = data["speed"]
        numbers: dict[str, Any] = {key: math.nan if v is None else v for key, v in data["perplexity"].items()}
        rates = {name: Rate(**speed[name]) for name in ("prefill", "decode")} if speed else {}
        return cls(
            **{
                **from_document(data),
                "perplexity": Perplexity(**numbers),
                "quality": Parity.from_json(data["quality"]),
                "speed": Speed(**{**speed, **rates}) if speed else None,
            }
        )


@dataclass(frozen=True)
class Sweep:
    """Exports of one model.

    Attributes:
        rows: plain quantization first, then by method and falling retention.
        dense: perplexity of the dense torch model.
        recipe: the recipe keys that all rows have in common.
        source: what was asked for, hash, licence.
        evaluation: text, windows and their hash, threads, device.
        versions, machine: as in reports.
    """

    rows: tuple[SweepRow, ...]
    dense: Perplexity
    recipe: Mapping[str, Any]
    source: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, str | int]

    def to_json(self) -> dict[str, Any]:
        """The sweep as JSON-ready data, each row with whether it is on the front."""
        best = pareto(self.rows)
        rows = [{**to_document(row), "on_front": row in best} for row in self.rows]
        document: dict[str, Any] = finite({"schema_version": SCHEMA_VERSION, **asdict(self), "rows": rows})
        return document


def read_rows(path: Path) -> tuple[SweepRow, ...]:
    """The rows of a sweep.json.

    Raises:
        InputError: missing, or not one of this version.
    """
    try:
        if not path.exists():
            raise InputError(f"{path}: no such file; give the folder of a sweep")
        data = parse_json(read_text_file(path, MAX_JSON_BYTES))
        if data["schema_version"] != SCHEMA_VERSION:
            raise InputError(f"{path}: of version {shown(data['schema_version'])}, this program reads {SCHEMA_VERSION}")
        rows = [{key: value for key, value in row.items() if key != "on_front"} for row in data["rows"]]
        return tuple(restored(SweepRow.from_json, row, path) for row in rows)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not the sweep.json of a sweep ({type(error).__name__})") from None
    except UsageError:
        raise InputError(f"{path}: not the sweep.json of a sweep (a value of the wrong type)") from None


def pareto(rows: Sequence[SweepRow]) -> tuple[SweepRow, ...]:
    """The rows that no other beats in bytes without losing in KL divergence, by rising bytes."""
    front: list[SweepRow] = []
    for row in sorted(rows, key=lambda row: (row.bytes, row.kld)):
        if math.isfinite(row.kld) and (not front or row.kld < front[-1].kld):
            front.append(row)
    return tuple(front)


@dataclass(frozen=True)
class Limits:
    """What a choice has to keep; None for no limit.

    Attributes:
        max_bytes: of the export.
        max_kld: mean KL divergence from the dense model.
        min_speed: decoded tokens per second.
    """

    max_bytes: float | None = None
    max_kld: float | None = None
    min_speed: float | None = None


@dataclass(frozen=True)
class Choice:
    """A recommendation.

    Attributes:
        row: what to take.
        reasons: lines that say why.
    """

    row: SweepRow
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The choice as JSON-ready data."""
        document: dict[str, Any] = finite({"row": to_document(self.row), "reasons": self.reasons})
        return document


def recommend(rows: Sequence[SweepRow], limits: Limits) -> Choice:
    """The smallest export within a quality limit; without one, the best within the others.

    Raises:
        UsageError: no limit at all, or a speed where none was measured.
        GateError: nothing keeps the limits; names what comes nearest.
    """
    if limits == Limits():
        raise UsageError("recommend what? give --max-bytes, --max-kld or --min-speed")
    if limits.min_speed is not None and not any(row.speed for row in rows):
        raise UsageError("--min-speed: this sweep was made with --no-speed")
    fitting = [row for row in rows if not _misses(row, limits)]
    if not fitting:
        nearest = min(rows, key=lambda row: (_excess(row, limits), row.kld), default=None)
        hint = "" if nearest is None else f"; nearest: {nearest.label}: {' and '.join(_misses(nearest, limits))}"
        raise GateError(f"none of {len(rows)} exports keeps these limits{hint}")
    smallest = limits.max_kld is not None
    ranked = sorted(fitting, key=lambda row: (row.bytes, row.kld) if smallest else (row.kld, row.bytes))
    chosen = ranked[0]
    what = "smallest" if smallest else "closest to the dense model"
    reasons = [f"{len(fitting)} of {len(rows)} exports keep the limits; this is the {what}: {_facts(chosen)}"]
    if len(ranked) > 1:
        reasons.append(f"next: {ranked[1].label}: {_facts(ranked[1])}")
    plain = [row for row in ranked if row.method in (PLAIN, AWARE)]
    if chosen.method not in (PLAIN, AWARE):
        beaten = f"{plain[0].label}: {_facts(plain[0])}" if plain else "none keeps the limits"
        reasons.append(f"plain quantization alone: {beaten}")
    elif all(row.method in (PLAIN, AWARE) for row in ranked[:2]):
        reasons.append("plain quantization alone is better here than any low-rank export")
    return Choice(chosen, tuple(reasons))


def _excess(row: SweepRow, limits: Limits) -> float:
    """How many times the worst limit is exceeded."""
    found = [1.0]
    if limits.max_bytes is not None:
        found.append(row.bytes / max(limits.max_bytes, 1.0))
    if limits.max_kld is not None:
        found.append(row.kld / max(limits.max_kld, 1e-12))
    if limits.min_speed is not None:
        found.append(math.inf if row.speed is None else limits.min_speed / max(row.speed.decode.median, 1e-12))
    return max(found)


def _misses(row: SweepRow, limits: Limits) -> list[str]:
    """Which limits a row does not keep."""
    found = []
    if limits.max_bytes is not None and row.bytes > limits.max_bytes:
        found.append(f"{row.bytes / 1e6:.1f} MB, at most {limits.max_bytes / 1e6:.1f}")
    if limits.max_kld is not None and not row.kld <= limits.max_kld:
        found.append(f"KLD {row.kld:.4g}, at most {limits.max_kld:g}")
    if limits.min_speed is not None and (row.speed is None or row.speed.decode.median < limits.min_speed):
        speed = "no speed" if row.speed is None else f"{row.speed.decode.median:.1f} tokens per second"
        found.append(f"{speed}, at least {limits.min_speed:g}")
    return found


def _facts(row: SweepRow) -> str:
    speed = f", {row.speed.decode.median:.1f} tokens per second" if row.speed else ""
    return f"{row.bytes / 1e6:.1f} MB, KLD {row.kld:.4g}, PPL {row.perplexity.value:.2f}{speed}"
