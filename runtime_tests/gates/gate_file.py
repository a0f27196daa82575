"""gates.yaml and --gate -> thresholds, checked strictly; and defaults that tell a broken artifact from a lossy one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...converter.core.errors import InputError, UsageError
from ...converter.core.nearest import nearest
from ...converter.storage.byte_size import parse_bytes
from ...converter.storage.documents import parse_yaml, read_yaml_file, shown
from ...exporters.registry import TARGETS
from ..backends.formats import CHECKPOINT
from ..report.report import Row
from .gate_metrics import METRICS, RUNS, Context, Metric
from .gates import Gate, gate

GATES_FILE = "gates.yaml"
ARTIFACTS = "artifacts"
Thresholds = Mapping[str, float | None]
"""Metric -> threshold, or None where its gate is off."""


def _lossy(kld: float, change: float) -> dict[str, float]:
    return {"parity.mean_kld": kld, "parity.perplexity_change": change}


CHECKPOINT_PARITY: dict[str, tuple[float, float]] = {"f32": (1e-6, 1e-3), "f16": (1e-4, 1e-3), "bf16": (1e-3, 5e-3)}
OTHER_PARITY = _lossy(0.05, 0.05)
QUALITY_DEFAULTS: dict[str, float] = {
    "artifact.tokenizer": 0,
    # Is it still the model? A release wants tighter figures of its own: put them into gates.yaml
    "quality.mean_kld": 1.0,
    "quality.perplexity_increase": 1.0,
    "generation.repetition_increase": 0.2,
}


@dataclass(frozen=True)
class GateSettings:
    """Thresholds as asked for; defaults fill in the rest.

    Attributes:
        every: for all artifacts.
        artifacts: (format, type) -> for those alone; they win.
        where: the file they come from, or empty.
    """

    every: Thresholds = field(default_factory=dict)
    artifacts: Mapping[tuple[str, str], Thresholds] = field(default_factory=dict)
    where: str = ""

    def asked(self, format: str, quantization: str) -> dict[str, float | None]:
        """What was asked for of a format ("gguf", "onnx", "checkpoint") and weight type."""
        return {**self.every, **self.artifacts.get((format, quantization), {})}

    def with_flags(self, flags: Iterable[str]) -> GateSettings:
        """These, overridden by `name=threshold` words of the command line, for all artifacts.

        Raises:
            UsageError: one line about the first that cannot be.
        """
        given: dict[str, float | None] = {}
        for flag in flags:
            name, equals, value = (part.strip() for part in flag.partition("="))
            if not equals:
                raise UsageError(f"--gate {flag}: expected NAME=THRESHOLD, for example parity.mean_kld=0.01")
            known = _known(name, "--gate")
            given[known] = _threshold(name, _scalar(value), "--gate")
        artifacts = {
            artifact: {name: value for name, value in own.items() if name not in given}
            for artifact, own in self.artifacts.items()
        }
        return GateSettings({**self.every, **given}, artifacts, self.where)

    def to_json(self) -> dict[str, Any]:
        """What was asked for, as reports hold it."""
        artifacts = {" ".join(artifact): dict(own) for artifact, own in self.artifacts.items()}
        return {"every": dict(self.every), "artifacts": artifacts, "file": self.where or None}


def parity_defaults(format: str, quantization: str) -> dict[str, float]:
    """Parity thresholds of a format and type; wide ones for unknown types."""
    limits = TARGETS[format].parity_limits() if format in TARGETS else CHECKPOINT_PARITY
    return _lossy(*limits[quantization]) if quantization in limits else OTHER_PARITY


def gates_of(row: Row, context: Context, settings: GateSettings, *, against_dense: bool) -> tuple[Gate, ...]:
    """Hold one artifact's row against its thresholds.

    A default gate is left out where its value was not measured; one that was asked for fails.

    Args:
        row: all its measurements.
        context: the rows it is held against.
        settings: what was asked for.
        against_dense: False for an export of the dense model itself: only parity is looked at then, by the defaults.
    """
    defaults = {**QUALITY_DEFAULTS, **parity_defaults(row.format, row.quantization)}
    asked = settings.asked(row.format, row.quantization) if against_dense else {}
    found = []
    for name, metric in METRICS.items():
        threshold = asked.get(name, defaults.get(name))
        value = metric.read(row, context)
        if threshold is None or (value is None and name not in asked):
            continue
        detail = _detail(name, row) if value is not None else f"not measured, {metric.needs}"
        measured = math.nan if value is None else value
        error = metric.error(row, context)
        found.append(gate(name, measured, threshold, at_least=metric.at_least, detail=detail, error=error))
    return tuple(found)


def _detail(name: str, row: Row) -> str:
    if name != "artifact.tokenizer" or row.tokenizer is None or not row.tokenizer.differing:
        return ""
    return f"first: {row.tokenizer.differing[0]!r}"


def gate_names(format: str, quantization: str, settings: GateSettings) -> list[str]:
    """Every gate that an artifact of a format and type may get."""
    chosen = {**QUALITY_DEFAULTS, **parity_defaults(format, quantization), **settings.asked(format, quantization)}
    return [RUNS, *(name for name in METRICS if chosen.get(name) is not None)]


def chosen_gates(path: Path | None, flags: Iterable[str]) -> GateSettings:
    """The gates file, ./gates.yaml by default where there is one, overridden by flags.

    Raises:
        InputError, UsageError: as `read_gates` and `with_flags`.
    """
    if path is None and Path(GATES_FILE).is_file():
        path = Path(GATES_FILE)
    settings = read_gates(path) if path is not None else GateSettings()
    return settings.with_flags(flags)


def read_gates(path: Path) -> GateSettings:
    """Read a gates file.

    Raises:
        InputError: not readable as a YAML mapping.
        UsageError: an unknown section, name, format or type, or a threshold of the wrong type or range; one line.
    """
    if not path.exists():
        raise InputError(f"{path}: no such gates file")
    data = read_yaml_file(path)
    if data is not None and not isinstance(data, dict):
        raise InputError(f"{path}: expected a YAML mapping of sections")
    values: dict[Any, Any] = dict(data or {})
    artifacts = _mapping(values.pop(ARTIFACTS, None), f"{path}: {ARTIFACTS}")
    return GateSettings(
        every=_thresholds(values, str(path), (ARTIFACTS,)),
        artifacts={
            _artifact(name, str(path)): _thresholds(_mapping(own, f"{path}: {name}"), f"{path}: {name}")
            for name, own in artifacts.items()
        },
        where=str(path),
    )


def _thresholds(sections: Mapping[Any, Any], where: str, others: tuple[str, ...] = ()) -> dict[str, float | None]:
    """Nested sections -> {"section.key": threshold}."""
    known = dict.fromkeys(name.partition(".")[0] for name in METRICS)
    found = {}
    for section, values in sections.items():
        if section not in known:
            raise UsageError(f"{where}: unknown section {shown(section)}{nearest(str(section), [*known, *others])}")
        for key, value in _mapping(values, f"{where}: {section}").items():
            name = _known(f"{section}.{key}", where)
            found[name] = _threshold(name, value, where)
    return found


def _mapping(value: Any, where: str) -> dict[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected names with thresholds, not {shown(value)}")
    return value


def _artifact(name: Any, where: str) -> tuple[str, str]:
    """ "gguf q8_0" -> ("gguf", "q8_0")."""
    formats = {
        **{name: tuple(row.parity_limits()) for name, row in TARGETS.items()},
        CHECKPOINT: tuple(CHECKPOINT_PARITY),
    }
    format, _, type = str(name).partition(" ")
    if format not in formats:
        raise UsageError(f"{where}: {ARTIFACTS}: unknown format {format!r}{nearest(format, formats)}")
    if type not in formats[format]:
        raise UsageError(f"{where}: {ARTIFACTS}: unknown {format} type {type!r}{nearest(type, formats[format])}")
    return format, type


def _known(name: str, where: str) -> str:
    if name not in METRICS:
        section, _, key = name.partition(".")
        keys = {other.partition(".")[2]: other for other in METRICS if other.startswith(f"{section}.")}
        if keys:
            raise UsageError(f"{where}: unknown gate {key!r} in {section}{nearest(key, keys)}")
        raise UsageError(f"{where}: unknown gate {name!r}{nearest(name, METRICS)}")
    return name


def _threshold(name: str, value: Any, where: str) -> float | None:
    """A number within the metric's range; None or `off` turn a gate off."""
    metric = METRICS[name]
    if value is None or value is False:
        return None
    number = _number(value, metric)
    if number is None:
        example = ", a size such as 100MB," if metric.bytes else ""
        raise UsageError(f"{where}: {name}: expected a number{example} or off, not {shown(value)}")
    if not (math.isfinite(number) and metric.low <= number <= metric.high):
        upper = "" if math.isinf(metric.high) else f" and at most {metric.high:g}"
        raise UsageError(f"{where}: {name}: a threshold is at least {metric.low:g}{upper}, not {shown(value)}")
    return number


def _scalar(text: str) -> Any:
    """A word of the command line as YAML would read it."""
    try:
        return parse_yaml(text)
    except ValueError:
        return text


def _number(value: Any, metric: Metric) -> float | None:
    if isinstance(value, str):
        if metric.bytes:
            return parse_bytes(value)
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as a word
        except ValueError:
            return None
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except OverflowError:
        return math.inf
