"""Fixtures of the exporters' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowrank_export.converter.core.progress import SilentProgress


@pytest.fixture(scope="session")
def ggml() -> Path:
    """The ggml library of the patched llama.cpp, which is built on first use and then cached for good."""
    from lowrank_export.exporters.llamacpp.runtime import ggml_library

    return ggml_library(SilentProgress())
