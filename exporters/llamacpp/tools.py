"""llama.cpp's own programs, from the same patched source as the library: built on request, kept in the same cache."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from ...converter.core.errors import ResourceError, UsageError
from ...converter.core.nearest import nearest
from ...converter.core.progress import Progress
from .build import check_compiler, child_seconds, follow, forget_unfinished, run_steps
from .ladder import NATIVE
from .runtime import build_digest, cache_folder, ensure_built, runtime_record
from .source import VERSION, last_error, pip, prepared_source

TOOLS = ("llama-cli", "llama-server", "llama-bench", "llama-perplexity", "llama-quantize", "llama-imatrix")
# Programs that need no library beside them. The server's page would be fetched from the network while building.
TOOL_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DLLAMA_BUILD_COMMON=ON",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
)
SUFFIX = ".exe" if sys.platform == "win32" else ""


def tools_key() -> str:
    """Name of the tools' folder in the cache: version plus a digest of all that decides what the compiler makes."""
    return f"{VERSION}-tools-{build_digest([*TOOL_OPTIONS, *_found_options(), *TOOLS])}"


def find_tools() -> Path | None:
    """The folder that holds the built programs, None if they have not been built."""
    folder = cache_folder() / tools_key()
    return folder if all((folder / f"{tool}{SUFFIX}").is_file() for tool in TOOLS) else None


def ensure_tools(progress: Progress, *, force: bool = False) -> Path:
    """The folder that holds the programs; builds them first if needed (some minutes, once per user and version).

    What had to be left out of the library, which is proven first, is left out of them.

    Args:
        progress: receives what is done.
        force: build anew even if they are there.

    Raises:
        ResourceError: no compiler, no network, no space, or the build failed.
        InputError: a download differs from its pinned hash.
    """
    return ensure_built(tools_key(), find_tools, lambda work, log: build_tools(work, log, progress), force=force)


def tool_path(name: str) -> Path:
    """A built program.

    Raises:
        UsageError: no such program; names the nearest.
        ResourceError: they have not been built.
    """
    if name not in TOOLS:
        raise UsageError(f"--tool {name}: unknown tool{nearest(name, TOOLS)}")
    folder = find_tools()
    if folder is None:
        raise ResourceError("llama.cpp tools: not built yet; run `lowrank-export runtime build --tools`")
    return folder / f"{name}{SUFFIX}"


def build_tools(folder: Path, log: Path, progress: Progress) -> Path:
    """Download, patch and compile; returns the folder that holds the programs.

    Args:
        folder: to work in, empty or as an interrupted build left it; the result lies inside it.
        log: where the compiler's output goes.
        progress: receives the percentage.

    Raises:
        ResourceError: no compiler, no network, or the build failed.
        InputError: a download differs from its pinned hash.
    """
    check_compiler()
    started, cpu = time.monotonic(), child_seconds()
    with progress.stage("building llama.cpp's tools (once)", 100) as advance:
        source, tree = prepared_source(folder), folder / "tree"
        forget_unfinished(tree)
        cmake, environment = find_cmake(folder / "cmake")
        log.unlink(missing_ok=True)
        configure = ["-S", str(source / "vendor" / "llama.cpp"), "-B", str(tree), *TOOL_OPTIONS, *_found_options()]
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        for _ in run_steps([*cmake, *configure], log, environment):
            pass
        build = ["--build", str(tree), "--config", "Release", "--target", *TOOLS]
        percent = follow(run_steps([*cmake, *build], log, environment), advance)
        programs = folder / "programs"
        programs.mkdir(exist_ok=True)
        for tool in TOOLS:
            made = next((path for path in (tree / "bin").rglob(f"{tool}{SUFFIX}") if path.is_file()), None)
            if made is None:
                raise ResourceError(f"llama.cpp tools: the build made no {tool} (full output: {log})")
            shutil.move(made, programs / made.name)
        advance(100 - percent)
    seconds, cpu = time.monotonic() - started, child_seconds() - cpu
    progress.note(f"llama.cpp's tools built in {seconds:.0f} s ({cpu:.0f} CPU-seconds)")
    return programs


def _found_options() -> tuple[str, ...]:
    """CMake's options of the library's proven build; the best ones while there is none."""
    record = runtime_record()
    return NATIVE.options if record is None else record.options


def find_cmake(folder: Path) -> tuple[list[str], Mapping[str, str]]:
    """CMake's command and the environment to run it in: the machine's own, else pip's, put into `folder`.

    Raises:
        ResourceError: neither is to be had.
    """
    generators = ("ninja", "make", "gmake", "nmake")
    if shutil.which("cmake") and any(shutil.which(name) for name in generators):
        return ["cmake"], os.environ
    if not folder.is_dir():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        command = [*pip(), "install", "--target", str(partial), "--only-binary", ":all:", "cmake", "ninja"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            raise ResourceError(f"llama.cpp tools: no cmake here, and pip could not get it: {last_error(done.stderr)}")
        partial.rename(folder)
    path = os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(folder), "CMAKE_GENERATOR": "Ninja"}
    return [sys.executable, "-P", "-m", "cmake"], environment
