"""The cache: what counts as built, who builds, what a failure leaves; and importing beside a stock llama_cpp."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

from lowrank_export.converter.core.errors import InputError, ResourceError
from lowrank_export.converter.core.progress import Progress, SilentProgress
from lowrank_export.exporters.llamacpp import runtime
from lowrank_export.exporters.llamacpp.ladder import NATIVE, Built
from lowrank_export.exporters.llamacpp.processor import Processor
from lowrank_export.exporters.llamacpp.proof import Proof
from lowrank_export.exporters.llamacpp.record import write_record


def fake_build(folder: Path, log: Path, progress: Progress) -> Path:
    (folder / "site" / "llama_cpp" / "lib").mkdir(parents=True)
    return folder / "site"


def test_key_follows_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    key = runtime.runtime_key()
    assert key.startswith("0.3.36-") and key == runtime.runtime_key()
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=ON")
    assert runtime.runtime_key() != key


def test_another_processor_finds_no_build_and_is_told_why(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a cache that machines share, or that came with an image."""
    monkeypatch.setattr(runtime, "build_runtime", fake_build)
    here = Processor("EPYC", "x86_64", frozenset({"avx512f"}), "epyc")
    monkeypatch.setattr(runtime, "this_processor", lambda: here)
    built = runtime.ensure_runtime(SilentProgress())
    write_record(Built(built, NATIVE, Proof(1, 1.0, (), {}), ()), here, {})
    assert runtime.find_runtime() == built
    monkeypatch.setattr(runtime, "this_processor", lambda: Processor("Xeon", "x86_64", frozenset({"amx"}), "xeon"))
    assert runtime.find_runtime() is None
    with pytest.raises(
        ResourceError, match=r"not built yet: .* another processor \(EPYC\); this one lacks avx512f: .* run"
    ):
        runtime.runtime_folder()
    told: list[str] = []

    class Told(SilentProgress):
        def note(self, message: str) -> None:
            told.append(message)

    other = runtime.ensure_runtime(Told())
    assert other != built and built.is_dir() and "another processor (EPYC)" in told[0]


def test_built_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runtime.find_runtime() is None
    monkeypatch.setattr(runtime, "build_runtime", fake_build)
    found = runtime.ensure_runtime(SilentProgress())
    assert found == cache / runtime.runtime_key() == runtime.find_runtime()
    monkeypatch.setattr(runtime, "build_runtime", None)
    assert runtime.ensure_runtime(SilentProgress()) == found


def test_force_builds_anew_and_keeps_the_old_until_then(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "build_runtime", fake_build)
    found = runtime.ensure_runtime(SilentProgress())
    (found / "old").touch()

    def broken(folder: Path, log: Path, progress: Progress) -> Path:
        raise ResourceError("no")

    monkeypatch.setattr(runtime, "build_runtime", broken)
    with pytest.raises(ResourceError, match="no"):
        runtime.ensure_runtime(SilentProgress(), force=True)
    assert (found / "old").exists() and runtime.find_runtime() == found
    monkeypatch.setattr(runtime, "build_runtime", fake_build)
    assert runtime.ensure_runtime(SilentProgress(), force=True) == found == runtime.find_runtime()
    assert not (found / "old").exists()
    assert {path.name for path in cache.iterdir()} == {found.name, f"{found.name}.lock"}


def test_two_at_a_time_build_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []

    def slow_build(folder: Path, log: Path, progress: Progress) -> Path:
        built.append(1)
        time.sleep(0.2)
        return fake_build(folder, log, progress)

    monkeypatch.setattr(runtime, "build_runtime", slow_build)
    threads = [threading.Thread(target=runtime.ensure_runtime, args=(SilentProgress(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1]


def test_failure_leaves_nothing_that_counts(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path, log: Path, progress: Progress) -> Path:
        (folder / "half").mkdir()
        raise ResourceError("no")

    monkeypatch.setattr(runtime, "build_runtime", broken)
    with pytest.raises(ResourceError, match="no"):
        runtime.ensure_runtime(SilentProgress())
    assert runtime.find_runtime() is None
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_an_interrupted_build_goes_on(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path, log: Path, progress: Progress) -> Path:
        (folder / "half").touch()
        raise KeyboardInterrupt

    def rest(folder: Path, log: Path, progress: Progress) -> Path:
        assert (folder / "half").exists()
        return fake_build(folder, log, progress)

    monkeypatch.setattr(runtime, "build_runtime", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runtime.ensure_runtime(SilentProgress())
    assert runtime.find_runtime() is None
    monkeypatch.setattr(runtime, "build_runtime", rest)
    assert runtime.ensure_runtime(SilentProgress()) == runtime.find_runtime()
    assert {path.name for path in cache.iterdir()} == {runtime.runtime_key(), f"{runtime.runtime_key()}.lock"}


def test_full_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, log: Path, progress: Progress) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runtime, "build_runtime", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        runtime.ensure_runtime(SilentProgress())


def test_import_before_build(cache: Path) -> None:
    with pytest.raises(ResourceError, match="not built yet"):
        runtime.import_llama_cpp()


def test_another_llama_cpp_already_imported(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / runtime.runtime_key() / "llama_cpp" / "lib").mkdir(parents=True)
    other = ModuleType("llama_cpp")
    other.__file__ = "/somewhere/llama_cpp/__init__.py"
    monkeypatch.setitem(sys.modules, "llama_cpp", other)
    with pytest.raises(InputError, match=r"already imported from .*somewhere"):
        runtime.import_llama_cpp()


def test_library_without_the_patch(cache: Path) -> None:
    """A stock library in the cache's place (LLAMA_CPP_LIB_PATH can do that) is noticed by its missing symbol."""
    package = cache / runtime.runtime_key() / "llama_cpp"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text("from types import SimpleNamespace as S\nllama_cpp = S(_lib=S())\n")
    code = "from lowrank_export.exporters.llamacpp.runtime import import_llama_cpp; import_llama_cpp()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "lacks the low-rank patch" in done.stderr.splitlines()[-1]


def test_patched_library_and_a_clean_path(llama_cpp_runtime: Path) -> None:
    module = runtime.import_llama_cpp()
    assert runtime.lowrank_version(module) == 2
    assert Path(module.__file__ or "").is_relative_to(llama_cpp_runtime)
    assert str(llama_cpp_runtime) not in sys.path
