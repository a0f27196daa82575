"""Fixtures of the runtime tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowrank_export.converter.progress import SilentProgress


@pytest.fixture(scope="session")
def llama_cpp_runtime() -> Path:
    """The patched llama.cpp, built on first use and then cached for good."""
    from lowrank_export.runtime_tests.llamacpp.runtime import ensure_runtime

    return ensure_runtime(SilentProgress())
