"""Where the patched llama.cpp lives: a per-user cache, built on first use, imported beside the environment."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ...converter.core.errors import InputError, LowRankError, ResourceError
from ...converter.core.progress import Progress
from ...converter.storage.files import cache_folder as user_cache
from .build import CMAKE_OPTIONS
from .ladder import NATIVE
from .processor import this_processor
from .proof import Proof, prove
from .proven import build_runtime
from .record import Record, other_processors, read_record
from .source import HASHES, PATCH, VERSION

MARKER = "llama_lowrank_version"  # the symbol that only a patched library exports

GGML_LIBRARIES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")


def cache_folder() -> Path:
    """Where built runtimes are kept, in the user's cache."""
    return user_cache() / "llama.cpp"


def runtime_key() -> str:
    """Name of the build that fits this machine: version plus a digest of all that decides what the compiler makes."""
    return f"{VERSION}-{build_digest((*CMAKE_OPTIONS, *NATIVE.options))}"


def build_digest(options: Iterable[str]) -> str:
    """Digest of source, patch, CMake's options, platform and processor: each kind of processor finds its own build."""
    parts = [VERSION, *HASHES.values(), PATCH.read_text(encoding="utf-8"), *options]
    parts += [os.environ.get("CMAKE_ARGS", ""), sys.platform, platform.machine(), this_processor().identity]
    return hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]


def find_runtime() -> Path | None:
    """The built runtime's folder, None if it has not been built."""
    folder = cache_folder() / runtime_key()
    return folder if (folder / "llama_cpp" / "lib").is_dir() else None


def runtime_folder() -> Path:
    """The built library's folder.

    Raises:
        ResourceError: it has not been built.
    """
    found = find_runtime()
    if found is None:
        raise ResourceError(f"llama.cpp runtime: not built yet{_for_others()}; run `lowrank-export runtime build`")
    return found


def runtime_record() -> Record | None:
    """How the built runtime came about; None if it has not been built."""
    found = find_runtime()
    return None if found is None else read_record(found)


def check_runtime(progress: Progress) -> Proof:
    """Prove the built runtime again; nothing is changed.

    Raises:
        ResourceError: it has not been built.
    """
    return prove(runtime_folder(), progress)


def ensure_runtime(progress: Progress, *, force: bool = False) -> Path:
    """The built runtime's folder; builds and proves it first if needed (some minutes, once per user and version).

    A second process waits for the first. A build that was interrupted or killed leaves nothing that counts as built,
    and the next one goes on with what it compiled; one that failed leaves nothing.

    Args:
        progress: receives what is done.
        force: build anew even if there is one.

    Raises:
        ResourceError: no compiler, no network, no space, the build failed, or none passes its proof.
        InputError: a download differs from its pinned hash.
    """
    if find_runtime() is None and (others := _for_others()):
        progress.note(f"llama.cpp runtime{others}")
    return ensure_built(runtime_key(), find_runtime, lambda work, log: build_runtime(work, log, progress), force=force)


def ensure_built(
    key: str, find: Callable[[], Path | None], build: Callable[[Path, Path], Path], *, force: bool = False
) -> Path:
    """A build's folder in the cache; makes it first if needed, one process at a time.

    Args:
        key: its name.
        find: gives the folder once it is built.
        build: makes it, in a folder to work in, empty or as an interrupted build left it, and a file for the compiler's
            output; returns what to keep.
        force: build anew even if there is one, which stays until the new one takes its place.

    Raises:
        ResourceError, InputError: as `build` says, or the cache cannot be written.
    """
    found = None if force else find()
    if found is not None:
        return found
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{key}.lock"):
            found = None if force else find()
            return found if found is not None else _build(cache, key, build)
    except OSError as error:
        raise ResourceError(f"llama.cpp runtime: cannot be built under {cache}: {error}") from None


def ggml_library(progress: Progress) -> Path:
    """The runtime's ggml library, which encodes the types that it decodes; builds the runtime first if needed.

    Raises:
        ResourceError, InputError: as `ensure_runtime` says, or the runtime lacks the library.
    """
    folder = ensure_runtime(progress) / "llama_cpp" / "lib"
    for name in GGML_LIBRARIES:
        if (folder / name).is_file():
            return folder / name
    raise ResourceError(f"llama.cpp runtime: no ggml library in {folder}")


def _build(cache: Path, key: str, build: Callable[[Path, Path], Path]) -> Path:
    work = cache / f"{key}.building"
    work.mkdir(exist_ok=True)
    try:
        made, before = build(work, cache / f"{key}.log"), work / "before"
        if (cache / key).exists():
            shutil.rmtree(before, ignore_errors=True)
            (cache / key).rename(before)
        try:
            made.rename(cache / key)
        except OSError:
            if before.exists():
                before.rename(cache / key)
            raise
    except (LowRankError, OSError):  # not what interrupts: the next build goes on from there
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)
    return cache / key


def _for_others() -> str:
    """Where the cache holds builds for other processors only, a line that says so, after a colon."""
    line = other_processors(cache_folder(), VERSION, this_processor())
    return f": {line}" if line else ""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock that the system releases even if the process is killed."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def import_llama_cpp() -> ModuleType:
    """Import the patched `llama_cpp`; a stock one installed in the environment is left alone.

    Raises:
        ResourceError: the runtime has not been built.
        InputError: another `llama_cpp` is already imported, or the library lacks the low-rank patch.
    """
    runtime = find_runtime()
    if runtime is None:
        raise ResourceError("llama.cpp runtime: not built yet; call ensure_runtime() first")
    module = sys.modules.get("llama_cpp")
    if module is None:
        sys.path.insert(0, str(runtime))
        try:
            module = importlib.import_module("llama_cpp")
        finally:
            sys.path.remove(str(runtime))
    origin = Path(module.__file__ or "")
    if not origin.is_relative_to(runtime):
        raise InputError(f"another llama_cpp is already imported from {origin.parent}; start a fresh process")
    if not lowrank_version(module):
        raise InputError(f"the llama.cpp library under {runtime} lacks the low-rank patch (is LLAMA_CPP_LIB_PATH set?)")
    return module


def lowrank_version(llama_cpp: ModuleType) -> int:
    """Version of the factored layout that the library behind an imported `llama_cpp` loads; 0 without the patch."""
    library = llama_cpp.llama_cpp._lib
    return int(getattr(library, MARKER)()) if hasattr(library, MARKER) else 0
