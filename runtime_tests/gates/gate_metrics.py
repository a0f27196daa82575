"""What can be gated: every name that gates.yaml knows, its range, and how it is read from a measured row."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from ..metrics.degeneration import repetition_increase
from ..metrics.parity import Parity
from ..timing.speed import Speed

if TYPE_CHECKING:
    from ..report.report import Row

RUNS, TOKENIZER = "artifact.runs", "artifact.tokenizer"


@dataclass(frozen=True)
class Context:
    """What an artifact's row is held against.

    Attributes:
        exported: the torch model it was exported from.
        dense: the uncompressed torch model, where there is one.
    """

    exported: Row
    dense: Row | None


@dataclass(frozen=True)
class Metric:
    """One value that a threshold can be set for.

    Attributes:
        meaning: for the documentation.
        read: row and what it is held against -> value; None where it was not measured.
        needs: what makes it measured.
        at_least: whether large values are good.
        low, high: range of thresholds that make sense.
        bytes: whether a threshold may be written as 100MB.
        error: row and what it is held against -> standard error of a sampled value.
    """

    meaning: str
    read: Callable[[Row, Context], float | None]
    needs: str = ""
    at_least: bool = False
    low: float = 0.0
    high: float = math.inf
    bytes: bool = False
    error: Callable[[Row, Context], float] = lambda row, context: 0.0


def _parity(name: str) -> Callable[[Row, Context], float | None]:
    return lambda row, _: None if row.parity is None else _of(row.parity, name)


def _quality(name: str) -> Callable[[Row, Context], float | None]:
    return lambda row, _: None if row.quality is None else _of(row.quality, name)


def _of(found: Parity, name: str) -> float:
    value: float = getattr(found, name)
    return value


def _perplexity_change(row: Row, context: Context) -> float | None:
    return abs(row.perplexity.value / context.exported.perplexity.value - 1)


def _perplexity_increase(row: Row, context: Context) -> float | None:
    return None if context.dense is None else row.perplexity.value / context.dense.perplexity.value - 1


def _repetition_increase(row: Row, context: Context) -> float | None:
    """More repetition in sampled text than the dense model's; None where there is no text or no dense model."""
    found = _increase(row, context)
    return None if found is None else found[0]


def _increase(row: Row, context: Context) -> tuple[float, float] | None:
    if row.writing is None or context.dense is None or context.dense.writing is None:
        return None
    ours, theirs = row.writing.sampled_degeneration, context.dense.writing.sampled_degeneration
    return None if math.isnan(theirs.repetition) else repetition_increase(ours, theirs)


def _increase_error(row: Row, context: Context) -> float:
    found = _increase(row, context)
    return 0.0 if found is None else found[1]


def _repetition_error(row: Row, _: Context) -> float:
    return 0.0 if row.writing is None else row.writing.sampled_degeneration.repetition_error


def _sampled(name: str) -> Callable[[Row, Context], float | None]:
    def read(row: Row, _: Context) -> float | None:
        return None if row.writing is None else float(getattr(row.writing.sampled_degeneration, name))

    return read


def _speed(name: str) -> Callable[[Row, Context], float | None]:
    return lambda row, _: None if row.speed is None else _median(row.speed, name)


def _against_dense(name: str) -> Callable[[Row, Context], float | None]:
    def read(row: Row, _: Context) -> float | None:
        if row.speed is None or row.dense_speed is None:
            return None
        return _median(row.speed, name) / _median(row.dense_speed, name)

    return read


def _median(speed: Speed, name: str) -> float:
    return speed.prefill.median if name == "prefill" else speed.decode.median


def _mean_score(row: Row) -> float | None:
    return fmean(score.value for score in row.tasks) if row.tasks else None


def _task_drop(row: Row, context: Context) -> float | None:
    ours, theirs = _mean_score(row), None if context.dense is None else _mean_score(context.dense)
    return None if ours is None or theirs is None else theirs - ours


DENSE = "needs --dense"
TASKS = "needs --task"
SPEED = "needs --speed"
TEXT = "needs generated text"
MEMORY = "needs --speed: load time and memory are measured with it"

METRICS: dict[str, Metric] = {
    "artifact.tokenizer": Metric(
        "probe texts that the artifact's tokenizer cuts into other tokens than the reference's",
        lambda row, _: None if row.tokenizer is None else float(len(row.tokenizer.differing)),
        "the runtime shows no tokenizer",
    ),
    "parity.mean_kld": Metric("mean KL(exported torch model || artifact), nats per token", _parity("mean_kld")),
    "parity.median_kld": Metric("its median", _parity("median_kld")),
    "parity.p99_kld": Metric("its 99th percentile", _parity("p99_kld")),
    "parity.max_kld": Metric("its maximum", _parity("max_kld")),
    "parity.same_top": Metric("share of tokens ranked first by both", _parity("same_top"), at_least=True, high=1),
    "parity.top5": Metric("share of the five likeliest tokens in common", _parity("top5"), at_least=True, high=1),
    "parity.max_change": Metric("largest change of the next token's probability", _parity("max_change"), high=1),
    "parity.perplexity_change": Metric("|PPL / PPL of the exported torch model - 1|", _perplexity_change),
    "quality.mean_kld": Metric("mean KL(dense || artifact), nats per token", _quality("mean_kld"), DENSE),
    "quality.median_kld": Metric("its median", _quality("median_kld"), DENSE),
    "quality.p99_kld": Metric("its 99th percentile", _quality("p99_kld"), DENSE),
    "quality.max_kld": Metric("its maximum", _quality("max_kld"), DENSE),
    "quality.same_top": Metric(
        "share of tokens ranked first by both", _quality("same_top"), DENSE, at_least=True, high=1
    ),
    "quality.top5": Metric(
        "share of the five likeliest tokens in common", _quality("top5"), DENSE, at_least=True, high=1
    ),
    "quality.perplexity_increase": Metric("PPL / PPL of the dense model - 1", _perplexity_increase, DENSE, low=-1),
    "quality.perplexity": Metric("PPL itself", lambda row, _: row.perplexity.value, low=1),
    "generation.repetition": Metric(
        "share of 4-token spans of the sampled texts that occurred before",
        _sampled("repetition"),
        TEXT,
        high=1,
        error=_repetition_error,
    ),
    "generation.repetition_increase": Metric(
        "the same, less the dense model's, text by text",
        _repetition_increase,
        f"{DENSE} and text that it writes",
        low=-1,
        high=1,
        error=_increase_error,
    ),
    "generation.longest_repeat": Metric(
        "tokens of the longest span that occurs twice in a sampled text", _sampled("longest_repeat"), TEXT
    ),
    "generation.distinct_2": Metric(
        "different / all 2-token spans of the sampled texts", _sampled("distinct_2"), TEXT, at_least=True, high=1
    ),
    "tasks.mean": Metric("mean score of the tasks", lambda row, _: _mean_score(row), TASKS, at_least=True, high=1),
    "tasks.mean_drop": Metric("the dense model's mean score less this one's", _task_drop, TASKS, low=-1, high=1),
    "speed.prefill": Metric("prefill tokens per second, median", _speed("prefill"), SPEED, at_least=True),
    "speed.decode": Metric("decoded tokens per second, median", _speed("decode"), SPEED, at_least=True),
    "speed.prefill_against_dense": Metric(
        "times the dense model's, in one run", _against_dense("prefill"), f"{SPEED} and a dense artifact", at_least=True
    ),
    "speed.decode_against_dense": Metric(
        "times the dense model's, in one run", _against_dense("decode"), f"{SPEED} and a dense artifact", at_least=True
    ),
    "size.bytes": Metric("bytes of the artifact", lambda row, _: float(row.bytes), bytes=True),
    "size.bits_per_weight": Metric("bits per stored weight", lambda row, _: row.bits_per_weight),
    "size.peak_memory": Metric(
        "peak resident bytes of the runtime's process",
        lambda row, _: None if row.footprint is None else float(row.footprint.peak_bytes),
        MEMORY,
        bytes=True,
    ),
    "size.load_seconds": Metric(
        "seconds to load", lambda row, _: None if row.footprint is None else row.footprint.load_seconds, MEMORY
    ),
}
"""Name in gates.yaml ("section.key") -> metric."""
