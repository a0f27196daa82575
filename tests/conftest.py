"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

HERE = Path(__file__).parent
# A core per process of the suite, and per process that a test starts: the models are too small to be worth two.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# How long an example takes depends on what else the machine does.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no process of the suite is left alone with one in the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """(name, make) -> a path that `make` has made, once for all processes of this run of the suite; read only."""

    def made(name: str, make: Callable[[Path], object]) -> Path:
        own = tmp_path_factory.getbasetemp()
        shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "made-once"
        shared.mkdir(exist_ok=True)
        path, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                make(path)
                done.touch()
        return path

    return made


@pytest.fixture(scope="session", autouse=True)
def _no_fsync() -> Iterator[None]:
    """The disk need not hold what a test wrote: no test cuts the power. `test_files.py` looks that it is asked to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def small_recipe() -> Callable[..., Any]:
    """(folder, **keys) -> a recipe for "dense" and "text.txt" in a folder, of a size that tiny models have."""
    from lowrank_export.converter.core.recipe import Recipe

    def build(folder: Path, **keys: Any) -> Any:
        found = {"model": str(folder / "dense"), "calibration": str(folder / "text.txt")}
        return Recipe(**{**found, "retention": 0.6, "rank_multiple": 4, "window_length": 32, **keys})

    return build


@pytest.fixture(scope="session")
def forked() -> Callable[..., Any]:
    """Start `argv` (tests/forked.py) in a process of its own, which needs no second to import torch and transformers.

    Takes the words, the files of its stdout and stderr, and more of its environment; returns multiprocessing's Process.
    """
    import multiprocessing

    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["transformers.models.llama.modeling_llama", "lowrank_export.converter.pipeline"])

    def start(argv: Sequence[str], log: Path, cwd: Path | None = None, **environment: str) -> Any:
        given = {"argv": [str(word) for word in argv], "environ": {**os.environ, **environment}}
        given |= {"cwd": str(cwd or Path.cwd()), "stdout": f"{log}.out", "stderr": str(log)}
        process = server.Process(target=runpy.run_path, args=(str(HERE / "forked.py"), {"given": given}, "__main__"))
        process.start()
        return process

    return start


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
    from lowrank_export.converter.planning import gathered

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathered, "computes_bfloat16", lambda device: wanted == "1")
        yield


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """tests/tiny.py: tiny random models of every family."""
    return _load("tiny")


@pytest.fixture(scope="session")
def tiny_vision() -> ModuleType:
    """tests/tiny_vision.py: tiny random vision-language models."""
    return _load("tiny_vision")


@pytest.fixture(scope="session")
def greedy() -> ModuleType:
    """tests/greedy.py: greedy text of a runtime, held against torch."""
    return _load("greedy")


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
    from lowrank_export.converter.core.progress import SilentProgress
    from lowrank_export.converter.model.source import open_source

    return open_source("demo", SilentProgress()).path


@pytest.fixture(scope="session")
def factored_demo(made_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The demo model, compressed by the default method on little text; made once, to be read only."""
    from lowrank_export.converter.core.recipe import Recipe
    from lowrank_export.converter.pipeline import compress

    recipe = Recipe(model="demo", retention=0.8, windows=4, window_length=256, held_out=0)
    return made_once("factored-demo", lambda path: compress(recipe, path))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of evaluation text named by LOWRANK_DATA."""
    folder = os.environ.get("LOWRANK_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.fail("LOWRANK_DATA does not name a folder of evaluation text; CONTRIBUTING.md says what it holds")
    return Path(folder)


@pytest.fixture(scope="session")
def llama_cpp_runtime() -> Path:
    """The patched llama.cpp, built on first use and then cached for good."""
    from lowrank_export.converter.core.progress import SilentProgress
    from lowrank_export.exporters.llamacpp.runtime import ensure_runtime

    return ensure_runtime(SilentProgress())
