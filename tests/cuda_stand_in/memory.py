"""How much of a memory tensors take."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

GRAIN = 512  # bytes: CUDA's allocator gives multiples


class Memory:
    """Bytes that tensors take, now and at most since `forget_peak`.

    A storage counts from the first tensor on it that is seen to the end of the last, which may be one that autograd
    holds.
    """

    def __init__(self, total: int | None = None) -> None:
        self.total = total
        self.allocated = self.peak = 0

    @property
    def free(self) -> int:
        """What is left."""
        assert self.total is not None
        return self.total - self.allocated

    def count(self, tensor: Tensor) -> None:
        """See a tensor."""
        storage = tensor.untyped_storage()
        if not hasattr(storage, "_counted"):
            size = -(-storage.nbytes() // GRAIN) * GRAIN
            self.take(size)
            storage._counted = True  # type: ignore[attr-defined]
            self.allocated += size
            weakref.finalize(storage, self._release, size)

    def take(self, size: int) -> None:
        """What a function takes while it runs."""
        if self.total is not None and size > self.free:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size} bytes. GPU 0 has a total capacity of {self.total} bytes "
                f"of which {self.free} bytes is free."
            )
        self.peak = max(self.peak, self.allocated + size)

    def forget_peak(self) -> None:
        """Begin anew."""
        self.peak = self.allocated

    def _release(self, size: int) -> None:
        self.allocated -= size
