"""Thresholds -> pass or fail."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


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
    """

    name: str
    value: float
    threshold: float
    passed: bool
    at_least: bool = False
    detail: str = ""

    @property
    def words(self) -> str:
        """Name, value and threshold in one line."""
        allowed = f"at {'least' if self.at_least else 'most'} {self.threshold:g} is allowed"
        return f"{self.name} {self.value:.4g}, {allowed}{f' ({self.detail})' if self.detail else ''}"


def gate(name: str, value: float, threshold: float, *, at_least: bool = False, detail: str = "") -> Gate:
    """Hold a value against its threshold. NaN fails."""
    passed = value >= threshold if at_least else value <= threshold
    return Gate(name, value, threshold, passed, at_least, detail)


def failed(gates: Iterable[Gate]) -> tuple[Gate, ...]:
    """The gates that did not pass."""
    return tuple(item for item in gates if not item.passed)
