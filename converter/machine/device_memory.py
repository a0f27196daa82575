"""A GPU's memory: what is free, what was taken, and one line where it was too little."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..core.errors import ResourceError

ALLOCATION_FAILED = ("out of memory", "ALLOC_FAILED")
"""What CUDA, cuBLAS, cuSOLVER and NCCL say; only PyTorch's own allocator raises an error of its own kind."""


def free_memory(device: torch.device) -> int:
    """Bytes of a GPU that this process can have: what is free, and what PyTorch has taken and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def peak_of_device(device: torch.device) -> int:
    """Bytes of a GPU that tensors of this process have taken at most so far."""
    return int(torch.cuda.max_memory_allocated(device))


def device_peak_of(device: torch.device, work: Callable[[], None]) -> int:
    """Bytes by which the tensors of this process on a GPU grow while `work` runs, at their peak."""
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    before = int(torch.cuda.memory_allocated(device))
    work()
    return peak_of_device(device) - before


def says_out_of_memory(error: BaseException) -> bool:
    """Whether an error of PyTorch means that memory, of the machine or of a GPU, was too little."""
    words = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(said in words for said in ALLOCATION_FAILED)


@contextmanager
def device_errors(device: torch.device, advice: str) -> Iterator[None]:
    """Say in one line that a GPU's memory was too little.

    Args:
        device: named in the error.
        advice: what to do.

    Raises:
        ResourceError: instead of whatever PyTorch or a library of CUDA raised.
    """
    try:
        yield
    except RuntimeError as error:
        if device.type != "cuda" or not says_out_of_memory(error):
            raise
        raise ResourceError(f"{device}: out of memory; {advice}") from None
