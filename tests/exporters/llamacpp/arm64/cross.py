"""The patched llama.cpp cross-compiled for arm64, one program per set of processor features, run by QEMU.

Run as a script it builds the programs into the user's cache; with `--check` it only says what this machine lacks.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lowrank_export.converter.core.errors import LowRankError, ResourceError
from lowrank_export.converter.core.progress import ConsoleProgress, Progress
from lowrank_export.exporters.llamacpp.build import child_seconds, follow, forget_unfinished, run_steps
from lowrank_export.exporters.llamacpp.runtime import cache_folder, ensure_built
from lowrank_export.exporters.llamacpp.source import HASHES, PATCH, VERSION, last_error, prepared_source
from lowrank_export.exporters.llamacpp.tools import find_cmake

COMPILERS = {"C": "aarch64-linux-gnu-gcc", "CXX": "aarch64-linux-gnu-g++"}
EMULATORS = ("qemu-aarch64", "qemu-aarch64-static")
INSTALL = "apt-get install --no-install-recommends g++-aarch64-linux-gnu qemu-user"
LOGITS = Path(__file__).with_name("logits.cpp")


@dataclass(frozen=True)
class Build:
    """One build of ggml's CPU backend.

    Attributes:
        name: of its program.
        march: what the compiler may use, as GGML_CPU_ARM_ARCH; ggml has other kernels for each.
        cpu: QEMU's processor, which has these features.
        features: as ggml names those it was compiled with.
    """

    name: str
    march: str
    cpu: str
    features: tuple[str, ...]


BUILDS = (
    Build("armv8.0", "armv8-a", "cortex-a53", ()),
    Build("dotprod", "armv8.2-a+dotprod", "cortex-a76", ("DOTPROD",)),
    Build("i8mm", "armv8.6-a+dotprod+fp16+i8mm", "max,sve=off", ("DOTPROD", "FP16_VA", "MATMUL_INT8")),
)
"""The features of three of the variants that ggml names for Android (8.0_1, 8.2_1, 8.6_1); the last two of them have
instructions for products of 8-bit integers, which the compiler's plain arm64 has not."""
KERNELS = frozenset(feature for build in BUILDS for feature in build.features)

# As docs/mobile.md builds for Android, without what no test needs.
CMAKE_OPTIONS = (
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    *(f"-DCMAKE_{language}_COMPILER={compiler}" for language, compiler in COMPILERS.items()),
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DCMAKE_OPTIMIZE_DEPENDENCIES=ON",  # the CPU backend alone is built again for each set of features
    "-DGGML_NATIVE=OFF",
    "-DGGML_OPENMP=OFF",
    "-DGGML_LLAMAFILE=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
)


def missing() -> str:
    """One line about what this machine lacks, and how to install it; empty if all is there."""
    lacking = [compiler for compiler in COMPILERS.values() if shutil.which(compiler) is None]
    if _emulator() is None:
        lacking.append(EMULATORS[0])
    if lacking:
        return f"{', '.join(lacking)} not found; Debian and Ubuntu: {INSTALL}"
    known = subprocess.run([_emulator() or "", "-cpu", "help"], capture_output=True, text=True, check=False).stdout
    unknown = {build.cpu.split(",")[0] for build in BUILDS} - set(known.split())
    return f"QEMU knows no {', '.join(sorted(unknown))}; it has to be 7.1 or newer" if unknown else ""


def check() -> None:
    """Make sure that everything is there.

    Raises:
        ResourceError: it is not; one line about what is missing and how to install it.
    """
    if lacks := missing():
        raise ResourceError(f"arm64: {lacks}")


def programs(progress: Progress) -> Path:
    """The folder that holds one program per build, in the user's cache; builds them first if needed (minutes).

    Raises:
        ResourceError: no compiler, no network, no space, or the build failed.
        InputError: a download differs from its pinned hash.
    """
    check()
    folder = cache_folder() / _key()

    def find() -> Path | None:
        return folder if folder.is_dir() else None

    return ensure_built(_key(), find, lambda work, log: _build(work, log, progress))


def logits(
    program: Path,
    cpu: str,
    model: Path,
    tokens: NDArray[np.int32],
    counts: Iterable[int],
    *,
    settings: Literal["exact", "default"] = "exact",
    threads: int = 1,
) -> tuple[NDArray[np.float32], str]:
    """Run a program on an emulated processor.

    Args:
        program: of one of the builds.
        cpu: QEMU's name of the processor.
        model: a GGUF file.
        tokens: (T,) ids.
        counts: how many are decoded together, one number per call; their sum is T.
        settings: as logits.cpp says.
        threads: of llama.cpp; emulated ones spend most of their time waiting for each other.

    Returns: logits (T, vocabulary), and the program's line about itself.

    Raises:
        CalledProcessError: it failed; `returncode` is the negative number of a signal.
    """
    command = [_emulator() or "", "-cpu", cpu, str(program), str(model), settings, str(threads)]
    command += map(str, counts)
    done = subprocess.run(command, input=tokens.tobytes(), capture_output=True, check=True)
    about = done.stderr.decode().splitlines()[0]
    return np.frombuffer(done.stdout, dtype=np.float32).reshape(len(tokens), -1), about


def _emulator() -> str | None:
    return next((name for name in EMULATORS if shutil.which(name)), None)


def _key() -> str:
    """Name of the programs' folder: version plus a digest of all that decides what the compiler makes."""
    version = [COMPILERS["CXX"], "--version"]
    compiler = subprocess.run(version, capture_output=True, text=True, check=True).stdout
    parts = [VERSION, *HASHES.values(), PATCH.read_text(encoding="utf-8"), *CMAKE_OPTIONS, repr(BUILDS), compiler]
    digest = hashlib.sha256(chr(0).join([*parts, LOGITS.read_text(encoding="utf-8")]).encode()).hexdigest()[:16]
    return f"{VERSION}-arm64-{digest}"


def _build(folder: Path, log: Path, progress: Progress) -> Path:
    """Download, patch, compile and link; returns the folder of the programs, inside `folder`."""
    started, cpu = time.monotonic(), child_seconds()
    log.unlink(missing_ok=True)
    with progress.stage("cross-compiling llama.cpp for arm64 (once)", 100 * len(BUILDS)) as advance:
        source = prepared_source(folder) / "vendor" / "llama.cpp"
        cmake, environment = find_cmake(folder / "cmake")
        made = folder / "programs"
        made.mkdir(exist_ok=True)
        for build in BUILDS:
            tree = folder / build.name
            forget_unfinished(tree)
            configure = ["-S", str(source), "-B", str(tree), *CMAKE_OPTIONS, f"-DGGML_CPU_ARM_ARCH={build.march}"]
            for _ in run_steps([*cmake, *configure], log, environment):
                pass
            target = [] if build is BUILDS[0] else ["--target", "ggml-cpu"]
            percent = follow(run_steps([*cmake, "--build", str(tree), *target], log, environment), advance)
            _link(source, folder / BUILDS[0].name, tree, made / build.name)
            advance(100 - percent)
    seconds, cpu = time.monotonic() - started, child_seconds() - cpu
    progress.note(f"llama.cpp cross-compiled for arm64 in {seconds:.0f} s ({cpu:.0f} CPU-seconds)")
    return made


def _link(source: Path, whole: Path, backend: Path, program: Path) -> None:
    """A program without libraries beside it: all of llama.cpp from one build folder, the CPU backend from another."""
    libraries = [
        whole / "src" / "libllama.a",
        whole / "ggml" / "src" / "libggml.a",
        backend / "ggml" / "src" / "libggml-cpu.a",
        whole / "ggml" / "src" / "libggml-base.a",
    ]
    command = [COMPILERS["CXX"], "-std=c++17", "-O2", "-static", "-pthread", "-o", str(program), str(LOGITS)]
    command += [f"-I{source / 'include'}", f"-I{source / 'ggml' / 'include'}", *map(str, libraries)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ResourceError(f"arm64: {program.name} cannot be linked: {last_error(done.stderr)}")


def main() -> int:
    try:
        if "--check" in sys.argv[1:]:
            check()
        else:
            print(programs(ConsoleProgress()))
    except LowRankError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
