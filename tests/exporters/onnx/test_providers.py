"""What a session says it runs on is believed, not what the package was built with."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

from lowrank_export.exporters.onnx.providers import probe
from lowrank_export.runtime_tests.doctor import diagnose


def test_cpu_session_runs() -> None:
    found = probe("cpu")
    assert found.got == ("CPUExecutionProvider",) and not found.error


def test_asking_for_cuda_says_what_was_got() -> None:
    """Without a GPU the session falls back in silence; with one CUDA comes first."""
    found = probe("cuda")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers() and found.got[:1] == ("CUDAExecutionProvider",):
        assert not found.error
    else:
        assert found.got == ("CPUExecutionProvider",) or found.error


class Session:
    def __init__(self, model: bytes, *_: Any, **__: Any) -> None:
        self.result = np.zeros((8, 8), dtype=np.float32)

    def run(self, *_: Any) -> list[Any]:
        return [self.result]


def test_a_wrong_product_and_a_failure_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    assert probe("cpu").got == () and "wrong" in probe("cpu").error

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no\nkernel")

    monkeypatch.setattr(onnxruntime, "InferenceSession", broken)
    assert probe("cpu").error == "no kernel"
    assert "cpu: no kernel" in diagnose().problems


def test_doctor_says_what_sessions_got() -> None:
    findings = diagnose()
    assert findings.sessions["cpu"] == "CPUExecutionProvider"
    assert "ONNX Runtime session that asks for cpu: CPUExecutionProvider" in findings.lines()
    assert any(line.startswith("ONNX Runtime installed as: onnxruntime") for line in findings.lines())
