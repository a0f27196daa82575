"""Fixtures of the arm64 tests, which are skipped where the cross compiler or QEMU is missing; and their table."""

from __future__ import annotations

import importlib.util
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

MEASURED = pytest.StashKey[dict[str, dict[str, float]]]()


def _cross() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lowrank_tests_cross", Path(__file__).with_name("cross.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def cross() -> ModuleType:
    """cross.py, beside this file."""
    module = _cross()
    if lacks := module.missing():
        pytest.skip(f"arm64: {lacks}")
    return module


@pytest.fixture(scope="session")
def programs(cross: ModuleType) -> Path:
    """The folder of the cross-compiled programs, which are built on first use and then cached for good."""
    from lowrank_export.converter.core.progress import SilentProgress

    folder: Path = cross.programs(SilentProgress())
    return folder


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> dict[str, dict[str, float]]:
    """File -> build -> KL divergence to x86-64; printed when the tests are over."""
    return request.config.stash.setdefault(MEASURED, defaultdict(dict))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(MEASURED, {})
    if rows:
        builds = list(next(iter(rows.values())))
        terminalreporter.section("mean KL divergence of arm64 to x86-64, in nats")
        terminalreporter.line(f"{'file':24}" + "".join(f"{build:>12}" for build in builds))
        for name, found in rows.items():
            terminalreporter.line(f"{name:24}" + "".join(f"{found.get(build, float('nan')):12.1e}" for build in builds))
