"""A block's forward that is suspended at each input group, so that factors are fitted and installed group by group.

Each chunk of calibration windows runs its forward in a greenlet. At a group's first linear the greenlet hands the
group's input over and is suspended; it keeps in memory the residual stream and that input, nothing else. All chunks
stop at the same group before any goes on. So every group sees inputs made by the groups before it as they are by then,
at the price of one forward per stream and with the activations of one group in memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from ..checkpoint.expert_modules import Shown, experts_of
from ..families.family import Family


class _Tap(nn.Module):
    """Stands before a linear, looked up when called: one replaced while the forward is suspended takes effect."""

    def __init__(self, linear: nn.Module, stops: bool) -> None:
        super().__init__()
        self.linear = linear
        self.stops = stops

    def forward(self, x: Tensor) -> Tensor:
        parent = getcurrent().parent
        if self.stops and parent is not None:
            with torch.autocast(x.device.type, enabled=False):  # is the forward's own: who reads x computes without it
                parent.switch(x)
        y: Tensor = self.linear(x)
        return y


class TappedBlock:
    """A block whose linears can be read at each group and replaced at any moment.

    Args:
        block: of the model.
        family: its architecture.
        share: of the tokens that each expert is shown at least, see `Shown`.
        beside: a block whose forward stops at each group before this one's does. Experts here are shown the same tokens
            first: the first rows of an input are the rows of its input.
    """

    def __init__(
        self, block: nn.Module, family: Family, *, share: float = 0.0, beside: TappedBlock | None = None
    ) -> None:
        self.block, self.experts = block, experts_of(block, family)
        if self.experts is not None:
            self.experts.shown = Shown(share, None if beside is None else beside.experts)
        self._taps: dict[str, _Tap] = {}
        for group in family.groups:
            for index, name in enumerate(group.linears):
                self._taps[name] = _Tap(block.get_submodule(name), stops=index == 0)
                block.set_submodule(name, self._taps[name])

    def linear(self, name: str) -> nn.Module:
        """The linear at a path inside the block."""
        return self._taps[name].linear

    def install(self, name: str, linear: nn.Module) -> None:
        """Put another module in a linear's place."""
        self._taps[name].linear = linear

    def unwrap(self) -> None:
        """Put the linears themselves back into the block."""
        for name, tap in self._taps.items():
            self.block.set_submodule(name, tap.linear)
        if self.experts is not None:
            self.experts.shown = None


class StoppedForward:
    """One chunk's forward. `next_input()` runs it to the next group, `finish()` to the end."""

    def __init__(self, run: Callable[[], Tensor]) -> None:
        self._greenlet = greenlet(run)

    def next_input(self) -> Tensor:
        """Input of the next group, flattened to tokens x features (T, n)."""
        x: Tensor = self._greenlet.switch()
        if self._greenlet.dead:
            raise RuntimeError("the block's forward ended before its next input group")
        return x.detach().reshape(-1, x.shape[-1])

    def finish(self) -> Tensor:
        """The block's output; call it after the last group."""
        y: Tensor = self._greenlet.switch()
        if not self._greenlet.dead:
            raise RuntimeError("the block has more input groups than its family says")
        return y

    def abandon(self) -> None:
        """Give up the rest of the forward and free what it holds."""
        if not self._greenlet.dead:
            self._greenlet.throw(GreenletExit)
