"""Memory that is free goes back to the system, so that a peak of one block is not added to by the next."""

from __future__ import annotations

import ctypes
import gc
import platform
import sys
from pathlib import Path


def exempt_loaded() -> None:
    """Let later collections pass over the objects of the libraries loaded so far: they stay, and are half a million."""
    gc.collect()
    gc.freeze()


def peak_memory() -> int:
    """Peak resident memory of this process so far, in bytes.

    Linux' VmHWM where there is one: getrusage's starts at that of the process that started this one.
    """
    import resource

    found = _status("VmHWM")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if found else used * (1 if platform.system() == "Darwin" else 1024)


def resident_memory() -> int:
    """Resident memory of this process now, in bytes."""
    import psutil

    return _status("VmRSS") or int(psutil.Process().memory_info().rss)


def _status(field: str) -> int:
    """A field of Linux' /proc/self/status in bytes, 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def release_freed() -> None:
    """Collect reference cycles (stopped forwards hold some); return free heap pages (with glibc), and those of a GPU.

    The tensors of the next stage have other sizes: what a GPU's memory was cut into for the last would not fit them.
    """
    gc.collect()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        sys.modules["torch"].cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent from musl
        if trim is not None:
            trim(0)
