"""Does a runtime survive an artifact? Tried in a process of its own: some files make ggml end the process it is in.

trial_child.py is that process. What a header can show is refused before (see exporters.gguf.consistency); a library of
a hundred architectures asserts more than that.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from ...converter.core.errors import InputError, LowRankError, ResourceError
from ...converter.core.progress import SilentProgress
from ...converter.core.signals import signal_words
from ...exporters.llamacpp.proof import Proof
from ...exporters.llamacpp.runtime import check_runtime
from .formats import LLAMA_CPP

CPU_SECONDS, BYTES_PER_SECOND = 600, 20_000_000  # a trial may take that long, and one second more per 20 MB
CHILD = f"{__package__}.trial_child"


def check_survives(path: Path, name: str) -> None:
    """Load an artifact, tokenize, feed a prompt and a token, exactly and fast, elsewhere; once per file and process.

    Args:
        path: the artifact.
        name: the runtime.

    Raises:
        InputError: that process was ended by a signal: the runtime cannot be given this file.
        ResourceError: it was, and the runtime fails its own proof too: that says nothing about the file.
        LowRankError: the runtime's own refusal.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    state = tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files if file.is_file())
    _tried(path, name, state)


@lru_cache(maxsize=256)
def _tried(path: Path, name: str, state: tuple[tuple[str, int, int], ...]) -> None:
    allowed = CPU_SECONDS + sum(size for _, _, size in state) // BYTES_PER_SECOND
    task = json.dumps({"path": str(path), "name": name, "seconds": allowed})
    command = [sys.executable, "-P", "-m", CHILD, task]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603
    said = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()] or [""]
    if done.returncode == 0:
        return
    if done.returncode == -signal.SIGKILL:
        raise ResourceError(f"{path}: {name} was killed while it loaded this file, most likely for want of memory")
    if done.returncode < 0:
        how = signal_words(-done.returncode)
        why = next((line for line in said if "assert" in line.lower()), said[-1]).strip()[:200]
        raise _verdict(path, name, f"{how}: {why}" if why else how)
    known = next((kind for kind in (InputError, ResourceError) if kind.exit_code == done.returncode), RuntimeError)
    raise known(said[-1])


def _verdict(path: Path, name: str, how: str) -> LowRankError:
    """Whether a signal is to be held against the file or the runtime."""
    ended = f"{path}: {name} ends the process that loads this file: {how}"
    if name != LLAMA_CPP:
        return InputError(f"{ended}; `lowrank-export doctor` says whether {name} runs anything here")
    proof = _runtime_proof()
    if proof.passed:
        return InputError(f"{ended}; the runtime passes its own proof, so it is the file that it cannot be given")
    return ResourceError(
        f"{ended}; the runtime fails its own proof too ({proof.summary()}), so it is to blame and not the model: "
        "`lowrank-export runtime build --check` shows the proof, `lowrank-export runtime build --force` builds it anew"
    )


@lru_cache(maxsize=1)
def _runtime_proof() -> Proof:
    return check_runtime(SilentProgress())
