"""Every reader of `benchmarks/fuzz.py` on inputs that hypothesis changes, and shrinks where one is not survived."""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

READERS = (
    "safetensors",
    "safetensors header",
    "config",
    "factored config",
    "index",
    "gguf",
    "imatrix",
    "recipe",
    "gates",
    "text",
    "json lines",
    "token windows",
    "onnx",
    "genai",
    "sweep",
    "journal",
    "claim",
    "statistics",
    "card",
    "kept recipe",
)


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    """benchmarks/fuzz.py, which imports what lies beside it."""
    folder = Path(__file__).resolve().parents[2] / "benchmarks"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        return importlib.import_module("fuzz")


@pytest.fixture(scope="module")
def targets(fuzz: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {target.name: target for target in fuzz.targets(tmp_path_factory.mktemp("fuzz"))}


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_reader(fuzz: ModuleType, targets: dict[str, Any], name: str) -> None:
    target = targets[name]

    @settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(chance=st.randoms(use_true_random=False))
    def survives(chance: random.Random) -> None:
        fuzz.meet(target, fuzz.mutate(chance.choice(target.seeds), target.kind, chance), found := fuzz.Found())
        assert not found.findings

    survives()


def test_a_finding_is_found(fuzz: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """The fuzzer sees what readers must not do."""
    from lowrank_export.converter.core.errors import InputError

    def reader(data: bytes) -> None:
        if b"\xff" in data:
            raise ZeroDivisionError("here")
        if data != b"sound":
            raise InputError("one line")

    found = fuzz.fuzz(fuzz.Target("x", (b"sound",), "bytes", reader), 0.2, 0)
    assert found.inputs > 20 and 0 < found.refused < found.inputs
    assert found.findings and all(line.startswith("ZeroDivisionError: here: ") for line in found.findings)
    assert "ff" in found.findings[0]
