"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent


def _load(name: str) -> ModuleType:
    """Import a helper module that lies beside this file (tests are not a package)."""
    file = HERE / name / "__init__.py" if (HERE / name).is_dir() else HERE / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"lowrank_tests_{name}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    import torch

    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """tests/tiny.py: tiny random models of every family."""
    return _load("tiny")


@pytest.fixture(scope="session")
def gguf_files() -> ModuleType:
    """tests/gguf_files.py: GGUF files that no exporter wrote."""
    return _load("gguf_files")


@pytest.fixture(scope="session")
def cuda_stand_in() -> ModuleType:
    """tests/cuda_stand_in: a GPU that is not there."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU: the tests marked cuda run on it")
    return _load("cuda_stand_in")


@pytest.fixture
def gpu(cuda_stand_in: ModuleType) -> Iterator[Any]:
    """A stand-in for a GPU of 8 GB, while the test runs."""
    with cuda_stand_in.StandIn() as device:
        yield device


@pytest.fixture(scope="session")
def models(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with "dense", "deep" (many blocks) and "text.txt", to be read only; some files have one of their own."""
    folder = tmp_path_factory.mktemp("models")
    tiny.save_dense(folder / "dense", "llama")
    tiny.save_dense(folder / "deep", "llama", blocks=48)
    (folder / "text.txt").write_text(tiny.TEXT, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def stock() -> ModuleType:
    """tests/stock.py: a llama.cpp without the patch."""
    module = _load("stock")
    if not module.INSTALLED:
        pytest.skip(module.REASON)
    return module


@pytest.fixture(scope="session")
def demo() -> Path:
    """The demo model as a dense Hugging Face folder; fetched once into the user's cache."""
    from lowrank_export.converter.model.source import open_source
    from lowrank_export.converter.progress import SilentProgress

    return open_source("demo", SilentProgress()).path


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of evaluation text named by LOWRANK_DATA."""
    folder = os.environ.get("LOWRANK_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("LOWRANK_DATA does not name a folder of evaluation text")
    return Path(folder)
