"""How the windows of a stream run through a block that is being replaced group by group: suspended, or recomputed.

Either way a group's inputs come out of the groups before it as they are by then, from the same computation.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Protocol

from torch import Tensor, nn

from .activations import Activations
from .block_forward import StoppedForward

Run = Callable[[nn.Module, Tensor], Tensor]


class Pass(Protocol):
    """A stream's way through one block, whose linears are tapped (`TappedBlock`)."""

    def input(self, chunk: int, group: int) -> Tensor:
        """Input (T, n) of input group `group` for one chunk of windows. Groups in order, and all chunks for each."""
        ...

    def output(self, chunk: int) -> Tensor:
        """The block's output for a chunk, after its last group."""
        ...

    def abandon(self) -> None:
        """Give up what is left of it and free what that holds."""
        ...


class SuspendedPass:
    """One forward per chunk, suspended at each group: what the forwards of all windows keep is in memory at once."""

    def __init__(self, run: Run, block: nn.Module, chunks: Activations) -> None:
        self._forwards = [StoppedForward(partial(run, block, x)) for x in chunks]

    def input(self, chunk: int, group: int) -> Tensor:
        """See `Pass`."""
        return self._forwards[chunk].next_input()

    def output(self, chunk: int) -> Tensor:
        """See `Pass`."""
        return self._forwards[chunk].finish()

    def abandon(self) -> None:
        """See `Pass`."""
        for forward in self._forwards:
            forward.abandon()


class RecomputedPass:
    """A forward from the block's start per chunk and group: what the forward of one chunk keeps is in memory."""

    def __init__(self, run: Run, block: nn.Module, chunks: Activations) -> None:
        self._run, self._block, self._chunks = run, block, chunks
        self._forward: StoppedForward | None = None
        self._chunk = -1

    def input(self, chunk: int, group: int) -> Tensor:
        """See `Pass`."""
        self.abandon()
        self._forward = StoppedForward(partial(self._run, self._block, self._chunks[chunk]))
        self._chunk = chunk
        for _ in range(group):
            self._forward.next_input()
        return self._forward.next_input()

    def output(self, chunk: int) -> Tensor:
        """See `Pass`."""
        if self._forward is not None and self._chunk == chunk:
            forward, self._forward = self._forward, None
            return forward.finish()
        self.abandon()
        return self._run(self._block, self._chunks[chunk])

    def abandon(self) -> None:
        """See `Pass`."""
        if self._forward is not None:
            self._forward.abandon()
            self._forward = None
            gc.collect()  # a forward that was given up holds itself in a cycle
