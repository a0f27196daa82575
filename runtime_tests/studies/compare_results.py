"""What a comparison of methods found: rows that are kept one file each, and the whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..child import Cost
from ..generation.generation import Sample
from ..metrics.parity import Parity
from ..metrics.perplexity import Perplexity
from ..report.report import finite

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Measurement:
    """One model on the evaluation windows.

    Attributes:
        bytes: size of the checkpoint.
        parameters: stored weights, tied ones once.
        perplexity: over all windows.
        quality: divergence from the dense model; None for that model itself.
        sample: greedy continuation of the prompt.
    """

    bytes: int
    parameters: int
    perplexity: Perplexity
    quality: Parity | None
    sample: Sample

    @property
    def bits_per_weight(self) -> float:
        """Bits the checkpoint spends per stored parameter."""
        return 8 * self.bytes / self.parameters

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """What `asdict` made, after JSON."""
        text = data["sample"]
        return cls(
            bytes=data["bytes"],
            parameters=data["parameters"],
            perplexity=Perplexity(**_numbers(data["perplexity"])),
            quality=Parity.from_json(data["quality"]) if data["quality"] else None,
            sample=Sample(text["prompt"], text["text"], tuple(text["tokens"])),
        )


@dataclass(frozen=True)
class CompareRow:
    """One method at one retention.

    Attributes:
        method: its name.
        retention: kept / original parameters of the linears, as asked for.
        kept: the same, as reached: ranks are rounded.
        cost: of `compress` in a process of its own, statistics of the dense model not included.
        measured: the checkpoint it made.
    """

    method: str
    retention: float
    kept: float
    cost: Cost
    measured: Measurement

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CompareRow:
        """What `asdict` made, after JSON."""
        measured = Measurement.from_json(data["measured"])
        return cls(data["method"], data["retention"], data["kept"], Cost(**data["cost"]), measured)


@dataclass(frozen=True)
class Gathering:
    """Statistics of the dense model, gathered once in a process of their own.

    Attributes:
        kind: "dense", "gradients", "fisher" or "sensitivity".
        methods: which of the compared methods read them.
        cost: of that process.
    """

    kind: str
    methods: tuple[str, ...]
    cost: Cost


@dataclass(frozen=True)
class Comparison:
    """Methods on one model, calibration text and evaluation text.

    Attributes:
        rows: by falling retention; methods in the order they were asked for.
        dense: the uncompressed model.
        statistics: what the methods share.
        recipe: the recipe keys that all rows have in common.
        source: the dense model: what was asked for, hash, licence.
        evaluation: text, windows and their hash, device, threads.
        versions: library -> version.
        machine: CPU model, cores, memory.
    """

    rows: tuple[CompareRow, ...]
    dense: Measurement
    statistics: tuple[Gathering, ...]
    recipe: Mapping[str, Any]
    source: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    versions: Mapping[str, str]
    machine: Mapping[str, str | int]

    @property
    def methods(self) -> tuple[str, ...]:
        """In the order they were asked for."""
        return tuple(dict.fromkeys(row.method for row in self.rows))

    @property
    def best(self) -> frozenset[tuple[str, float]]:
        """(method, retention) of the lowest perplexity at each retention that several methods were run at."""
        found = []
        for retention in {row.retention for row in self.rows}:
            rivals = [row for row in self.rows if row.retention == retention]
            scored = [row for row in rivals if math.isfinite(row.measured.perplexity.value)]
            if len(rivals) > 1 and scored:
                winner = min(scored, key=lambda row: row.measured.perplexity.value)
                found.append((winner.method, retention))
        return frozenset(found)

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON-ready data; values that are no finite number become null."""
        rows = [{**asdict(row), "compression": 1 - row.kept} for row in self.rows]
        for data, row in zip(rows, self.rows, strict=True):
            data["measured"]["bits_per_weight"] = row.measured.bits_per_weight
        document: dict[str, Any] = finite({"schema_version": SCHEMA_VERSION, **asdict(self), "rows": rows})
        return document


def _numbers(data: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: put it back."""
    return {key: math.nan if value is None else value for key, value in data.items()}
