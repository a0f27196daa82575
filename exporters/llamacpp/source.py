"""The pinned llama.cpp source: downloaded with its hash checked, unpacked, patched."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from ...converter.core.errors import InputError, ResourceError


@dataclass(frozen=True)
class Release:
    """A source distribution of llama-cpp-python that this project has a patch for.

    Attributes:
        version: of llama-cpp-python.
        llama_cpp: version of the llama.cpp inside it.
        sha256: of the source distribution.
    """

    version: str
    llama_cpp: str
    sha256: str

    @property
    def patch(self) -> Path:
        """The patch, beside this file."""
        return Path(__file__).with_name(f"lowrank-{self.version}.patch")


# Newest first; the first is built. CONTRIBUTING.md says how to add one.
RELEASES = (Release("0.3.36", "0.5.0", "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"),)
VERSION, PATCH = RELEASES[0].version, RELEASES[0].patch
DISKCACHE = "5.6.3"  # imported by llama_cpp, needed by nothing else: it lives beside it, not in the user's environment
HASHES = {
    f"llama_cpp_python-{VERSION}.tar.gz": RELEASES[0].sha256,
    f"diskcache-{DISKCACHE}-py3-none-any.whl": "5e31b2d5fbad117cc363ebaf6b689474db18a1f6438bc82358b024abd4c2ca19",
}

# Upstream forces llama.cpp's helper library on; nothing of it is shipped, and it takes a third of the build.
COMMON_FORCED_ON = 'set(LLAMA_BUILD_COMMON ON CACHE BOOL "Build llama.cpp common library" FORCE)'
COMMON_OFF = COMMON_FORCED_ON.replace(" ON ", " OFF ")


def prepared_source(folder: Path) -> Path:
    """The pinned files in `folder`, and the unpacked, patched source there; as a build before this one left it, if it
    got that far.

    Raises:
        ResourceError, InputError: as `download`, `verify` and `apply_patch` say.
    """
    ready = folder / "source"
    if not ready.is_dir():
        partial = folder / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        download(folder)
        source = unpack(folder / next(iter(HASHES)), partial)
        apply_patch(source)
        source.rename(ready)
    for name, digest in HASHES.items():
        verify(folder / name, digest)
    return ready


def download(folder: Path) -> None:
    """Fetch the pinned files into `folder` with pip, which refuses any whose hash differs.

    Raises:
        ResourceError: no network, or the package index does not have a file of that hash.
    """
    sdist, wheel = HASHES.values()
    requirements = folder / "requirements.txt"
    requirements.write_text(
        f"llama-cpp-python=={VERSION} --hash=sha256:{sdist}\ndiskcache=={DISKCACHE} --hash=sha256:{wheel}\n",
        encoding="utf-8",
    )
    command = [
        *pip(),
        "download",
        "--no-deps",
        "--require-hashes",
        "--no-binary",
        "llama-cpp-python",
        "--dest",
        str(folder),
        "--requirement",
        str(requirements),
    ]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise ResourceError(
            f"llama.cpp runtime: pip could not download llama-cpp-python {VERSION}: {last_error(done.stderr)}"
        )


def pip() -> list[str]:
    """The pip of this environment, as the start of a command."""
    return [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check"]


def verify(path: Path, digest: str) -> None:
    """Check a file's SHA-256.

    Raises:
        InputError: the file is missing or differs.
    """
    if not path.is_file():
        raise InputError(f"llama.cpp runtime: {path.name} was not downloaded")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != digest:
        raise InputError(f"llama.cpp runtime: {path.name} has SHA-256 {found}, expected {digest}")


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the source archive; members that would leave `folder` are refused. Returns its top folder."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def apply_patch(source: Path) -> None:
    """Patch the llama.cpp tree of an unpacked source distribution, in place.

    Raises:
        InputError: a hunk does not fit (the source is not the pinned one).
    """
    import patch_ng

    patches = patch_ng.fromfile(str(PATCH))
    if not patches or not patches.apply(strip=1, root=str(source / "vendor" / "llama.cpp")):
        raise InputError(f"llama.cpp runtime: {PATCH.name} does not apply to this source")
    build_file = source / "CMakeLists.txt"
    text = build_file.read_text(encoding="utf-8")
    if COMMON_FORCED_ON not in text:
        raise InputError(f"llama.cpp runtime: {build_file.name} is not that of llama-cpp-python {VERSION}")
    build_file.write_text(text.replace(COMMON_FORCED_ON, COMMON_OFF), encoding="utf-8")


def last_error(output: str) -> str:
    """The line of a tool's output that says what went wrong: the last one with "error", else the last one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() and not line.startswith("note:")]
    return (errors or lines or ["no output"])[-1]
