"""The process that an artifact is tried in: `python -m lowrank_export.runtime_tests.backends.trial_child`."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from ...converter.core.errors import LowRankError, ResourceError
from .open import open_backend

CONTEXT = 64  # tokens
WORDS = "Hello, world 123.\n"


def _try(path: Path, name: str) -> None:
    for exact in (True, False):
        backend = open_backend(path, name, threads=1, context=CONTEXT, exact=exact, tried=True)
        try:
            tokenize = getattr(backend, "tokenize", None)
            if tokenize is not None:
                tokenize(WORDS)
            backend.window_logits(np.zeros(CONTEXT // 2, dtype=np.int32))
            backend.reset()
            backend.feed(np.zeros(8, dtype=np.int32))
            backend.feed(np.zeros(1, dtype=np.int32))
        finally:
            backend.close()


def _bound(seconds: int) -> None:
    """No more processor time than that, no more memory than the machine has; and no core file of a model's size."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        import psutil

        for kind, limit in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_CPU, seconds),
            (resource.RLIMIT_DATA, psutil.virtual_memory().total),
        ):
            _, hard = resource.getrlimit(kind)
            resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    _bound(given["seconds"])
    try:
        _try(Path(given["path"]), given["name"])
    except LowRankError as error:
        sys.stderr.write(f"\n{' '.join(str(error).split())}\n")
        sys.exit(error.exit_code)
    except MemoryError:
        sys.stderr.write(f"\n{given['path']}: no memory to load it\n")
        sys.exit(ResourceError.exit_code)
