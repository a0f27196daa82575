"""Memory that is free goes back to the system, so that a peak of one block is not added to by the next."""

from __future__ import annotations

import ctypes
import gc
import sys


def exempt_loaded() -> None:
    """Let later collections pass over the objects of the libraries loaded so far: they stay, and are half a million."""
    gc.collect()
    gc.freeze()


def release_freed() -> None:
    """Collect reference cycles (stopped forwards hold some) and, with glibc, return free heap pages."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent from musl
        if trim is not None:
            trim(0)
