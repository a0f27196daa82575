"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


def _load(name: str) -> ModuleType:
    """Import a helper module that lies beside this file (tests are not a package)."""
    spec = importlib.util.spec_from_file_location(f"lowrank_tests_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    import torch

    torch.set_num_threads(2)


@pytest.fixture(scope="session", autouse=True)
def _one_package() -> Iterator[None]:
    """A package that was installed from a wheel is tested as it is: nothing of the checkout may take its place."""
    import lowrank_export

    yield
    root = HERE.parent
    if Path(lowrank_export.__file__).parent != root:
        files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
        folders = {root / part for part in ("converter", "exporters", "runtime_tests")}
        ours = [name for name, file in files.items() if file and folders & {*Path(file).parents}]
        assert not ours, f"imported from the checkout: {ours}"


@pytest.fixture(scope="session", autouse=True)
def _another_processor() -> Iterator[None]:
    """LOWRANK_BFLOAT16=1 or 0: as if this processor multiplied bfloat16 in hardware, or did not."""
    wanted = os.environ.get("LOWRANK_BFLOAT16")
    if wanted is None:
        yield
        return
    from lowrank_export.converter import preparation

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "computes_bfloat16", lambda device: wanted == "1")
        yield


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """tests/tiny.py: tiny random models of every family."""
    return _load("tiny")


@pytest.fixture(scope="session")
def greedy() -> ModuleType:
    """tests/greedy.py: greedy text of a runtime, held against torch."""
    return _load("greedy")


@pytest.fixture(scope="session")
def gguf_files() -> ModuleType:
    """tests/gguf_files.py: GGUF files that no exporter wrote."""
    return _load("gguf_files")


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
