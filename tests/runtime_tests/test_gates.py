"""Thresholds decide, and nothing that is no number passes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lowrank_export.runtime_tests.gates import OTHER_LIMITS, Limits, failed, gate, parity_gates, parity_limits
from lowrank_export.runtime_tests.parity import Parity
from lowrank_export.runtime_tests.perplexity import Perplexity

PARITY = Parity(1e-5, 1e-6, 1e-4, 1e-3, 0.999, 1e-4, 1e-3, 100)
REFERENCE = Perplexity(20.0, 0.5, 100)


@pytest.mark.parametrize(("value", "passed"), [(0.0, True), (1.0, True), (1.0001, False), (math.nan, False)])
def test_gate(value: float, passed: bool) -> None:
    assert gate("g", value, 1.0).passed is passed


@pytest.mark.parametrize(
    ("format", "quantisation", "kld"),
    [
        ("gguf", "f32", 1e-4),
        ("gguf", "f16", 1e-4),
        ("gguf", "q8_0", 0.02),
        ("onnx", "fp32", 1e-6),
        ("onnx", "int8", 0.02),
    ],
)
def test_documented_limits(format: str, quantisation: str, kld: float) -> None:
    assert parity_limits(format, quantisation).mean_kld == kld
    assert parity_limits("gguf", "iq1_s") == OTHER_LIMITS


def test_each_gate_fails_alone() -> None:
    limits = Limits(1e-4, 1e-3)
    good = Perplexity(20.01, 0.5, 100)
    assert failed(parity_gates(PARITY, good, REFERENCE, limits)) == ()
    (far,) = failed(parity_gates(replace(PARITY, mean_kld=2e-4), good, REFERENCE, limits))
    assert "KLD" in far.name and far.value == 2e-4 and far.threshold == 1e-4
    for value in (20.03, 19.97, math.inf):  # better than the reference is as wrong as worse
        (drift,) = failed(parity_gates(PARITY, Perplexity(value, 0.5, 100), REFERENCE, limits))
        assert "PPL" in drift.name
