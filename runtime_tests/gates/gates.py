"""Thresholds -> pass or fail."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

ERRORS = 2  # standard errors by which a sampled value may lie beyond its threshold


@dataclass(frozen=True)
class Gate:
    """One measured value against its threshold.

    Attributes:
        name: what is measured, as gates.yaml calls it, e.g. "parity.mean_kld".
        value: what was measured; a value that is not a number fails.
        threshold: the value allowed at most, or at least.
        at_least: whether the threshold is the smallest value that passes, not the largest.
        passed: whether the value is on the right side.
        detail: what else is to be said of a failure; empty for none.
        error: standard error of a sampled value, which fails when it is beyond its threshold by more than twice that;
            else 0.
    """

    name: str
    value: float
    threshold: float
    passed: bool
    at_least: bool = False
    detail: str = ""
    error: float = 0.0

    @property
    def measured(self) -> str:
        """The value in words, with its error where it has one."""
        return f"{self.value:.3g} ± {self.error:.1g}" if self.error else f"{self.value:.4g}"

    @property
    def words(self) -> str:
        """Name, value and threshold in one line."""
        allowed = f"at {'least' if self.at_least else 'most'} {self.threshold:g} is allowed"
        return f"{self.name} {self.measured}, {allowed}{f' ({self.detail})' if self.detail else ''}"


def gate(
    name: str, value: float, threshold: float, *, at_least: bool = False, detail: str = "", error: float = 0.0
) -> Gate:
    """Hold a value against its threshold. NaN fails; an error that is NaN counts for none."""
    error = 0.0 if math.isnan(error) else error
    doubt = ERRORS * error
    passed = value >= threshold - doubt if at_least else value <= threshold + doubt
    return Gate(name, value, threshold, passed, at_least, detail, error)


def failed(gates: Iterable[Gate]) -> tuple[Gate, ...]:
    """The gates that did not pass."""
    return tuple(item for item in gates if not item.passed)
