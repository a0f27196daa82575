"""Compiles the patched llama.cpp into one folder that can be put on sys.path."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ...converter.core.errors import ResourceError
from ...converter.core.progress import Advance, Progress
from .ladder import Rung
from .source import HASHES, last_error, pip, prepared_source

# What all builds share; ladder.py has the rest. The vision library, the tests and the tools are not shipped; curl and
# OpenSSL serve only the tools.
CMAKE_OPTIONS = (
    "-DLLAVA_BUILD=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
)
COMPILERS = {"CXX": ("c++", "g++", "clang++"), "CC": ("cc", "gcc", "clang")}
COMPILED = (".o", ".obj", ".a", ".lib", ".so", ".dylib", ".dll")
STEP = re.compile(r"^\s*\[\s*(?:(\d+)/(\d+)\]|(\d+)%\])")  # ninja's "[35/78]", make's "[ 45%]"


def compile_runtime(folder: Path, log: Path, progress: Progress, rung: Rung) -> Path:
    """Download, patch and compile; returns the folder that holds the importable `llama_cpp`.

    Args:
        folder: to work in, empty or as an interrupted build left it; the result lies inside it.
        log: where the compiler's output goes.
        progress: receives the percentage.
        rung: how to build.

    Raises:
        ResourceError: no compiler, no network, or the build failed.
        InputError: a download differs from its pinned hash.
    """
    check_compiler()
    started, cpu = time.monotonic(), child_seconds()
    how = f"without {rung.left_out}" if rung.left_out else "once"
    with progress.stage(f"building llama.cpp ({how})", 100) as advance:
        source, tree = prepared_source(folder), tree_of(folder, rung)
        site, wheels = tree.with_name(f"site-{rung.name}"), tree.with_name(f"wheel-{rung.name}")
        forget_unfinished(tree)
        percent = follow(_compile(source, tree, wheels, log, rung.options), advance)
        for wheel in (*wheels.glob("*.whl"), folder / list(HASHES)[1]):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
        advance(100 - percent)
    seconds, cpu = time.monotonic() - started, child_seconds() - cpu
    progress.note(f"llama.cpp built in {seconds:.0f} s ({cpu:.0f} CPU-seconds)")
    return site


def tree_of(folder: Path, rung: Rung) -> Path:
    """CMake's build folder of one way to build, in the folder that a build works in."""
    return folder / f"tree-{rung.name}"


def check_compiler() -> None:
    """Make sure that a C and a C++ compiler are there before anything is downloaded.

    Raises:
        ResourceError: names the package to install.
    """
    for variable, names in COMPILERS.items():
        candidates = (os.environ[variable].split()[0],) if os.environ.get(variable, "").strip() else names
        if not any(shutil.which(name) for name in candidates):
            language = "C++" if variable == "CXX" else "C"
            raise ResourceError(
                f"llama.cpp runtime: no {language} compiler found ({', '.join(candidates)}); install one: "
                "Debian/Ubuntu `apt install build-essential`, Fedora `dnf install gcc-c++`, "
                "macOS `xcode-select --install`"
            )


def forget_unfinished(tree: Path) -> None:
    """Remove what compilers wrote last in a build folder: a kill leaves files half-written, and make takes any file
    for a finished one."""
    made = [path for path in tree.rglob("*") if path.suffix in COMPILED and path.is_file()]
    at_once = os.cpu_count() or 1
    for path in sorted(made, key=lambda path: path.stat().st_mtime_ns)[-2 * at_once :]:
        path.unlink()


def _compile(source: Path, tree: Path, wheels: Path, log: Path, options: Sequence[str]) -> Iterator[int]:
    """Build one wheel with pip and scikit-build-core in the folder `tree`; yields percentages, non-decreasing."""
    command = [*pip(), "wheel", "--no-deps", "--verbose"]
    command += ["--wheel-dir", str(wheels), "--config-settings", f"cmake.args={';'.join((*CMAKE_OPTIONS, *options))}"]
    command += ["--config-settings", f"build-dir={tree}", str(source)]
    log.unlink(missing_ok=True)
    yield from run_steps(command, log)
    if not any(wheels.glob("*.whl")):
        raise ResourceError(f"llama.cpp runtime: the build made no wheel (full output: {log})")


def follow(percentages: Iterable[int], advance: Advance) -> int:
    """Report non-decreasing percentages as steps; returns the last."""
    percent = 0
    for now in percentages:
        advance(now - percent)
        percent = now
    return percent


def run_steps(command: list[str], log: Path, environment: Mapping[str, str] = os.environ) -> Iterator[int]:
    """Run a compiler driver; its output is added to `log`. Yields percentages, non-decreasing, 99 at most.

    Raises:
        ResourceError: it failed; the line that says why.
    """
    environment = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1), **environment, "PIP_NO_COLOR": "1"}
    percent = 0
    with log.open("a", encoding="utf-8", errors="replace") as record:
        process = subprocess.Popen(  # noqa: S603
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            process_group=0,
        )
        try:
            for line in process.stdout or ():
                record.write(line)
                if step := STEP.match(line):
                    done, total, share = step.groups()
                    now = int(share) if share else 100 * int(done) // max(1, int(total))
                    percent = max(percent, min(99, now))
                    yield percent
        finally:
            if process.poll() is None and sys.exc_info()[0] is not None:
                os.killpg(process.pid, signal.SIGTERM)  # cmake alone would wait for the compilers to finish
            code = process.wait()
    if code != 0:
        output = log.read_text(encoding="utf-8")
        raise ResourceError(f"llama.cpp runtime: the build failed: {last_error(output)} (full output: {log})")


def child_seconds() -> float:
    """CPU seconds used by finished child processes, user and system."""
    times = os.times()
    return times.children_user + times.children_system
