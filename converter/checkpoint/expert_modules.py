"""The experts of a block as linears of their own: what takes the place of transformers' stacked parameters.

transformers keeps a linear of all experts in one parameter, (experts, out, in); files have a matrix per expert, and so
has this module, under the files' names. Hence an expert's linear is one like any other: read alone, tapped, replaced by
factors. It computes what transformers' does, expert by expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import ceil

import torch
from torch import Tensor, nn

from ..families.family import Experts, Family


class Expert(nn.Module):
    """A gated MLP, W_down (act(W_gate x) * W_up x), with linears named as in the files."""

    def __init__(self, names: Experts, linears: tuple[nn.Module, nn.Module, nn.Module], act: nn.Module) -> None:
        super().__init__()
        self._names = (names.gate, names.up, names.down)
        for name, linear in zip(self._names, linears, strict=True):
            self.add_module(name, linear)
        self.act_fn = act

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens x features (T, d) to (T, d)."""
        gate, up, down = (getattr(self, name) for name in self._names)
        y: Tensor = down(self.act_fn(gate(x)) * up(x))
        return y


class ExpertList(nn.ModuleList):
    """The experts of a block, called as transformers' are.

    Attributes:
        chosen: experts of each token (T, k), of the last forward.
        shown: which tokens each expert is shown beyond those that are sent to it; None where none are, and an expert
            without tokens is not called.
    """

    def __init__(self, experts: list[Expert]) -> None:
        super().__init__(experts)
        self.chosen: Tensor | None = None
        self.shown: Shown | None = None

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Sum over a token's experts of weight x expert(token).

        Args:
            hidden_states: tokens x features (T, d).
            top_k_index: experts of each token (T, k).
            top_k_weights: their weights (T, k).
        """
        if torch.compiler.is_exporting():  # a graph has no loop over what a text chooses
            return self._all(hidden_states, top_k_index, top_k_weights)
        self.chosen = top_k_index
        shown = None if self.shown is None else self.shown.of(top_k_index)
        y = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            tokens, place = torch.where(top_k_index == number)
            weights = top_k_weights[tokens, place]
            if shown is not None:
                rows = shown(number)
                weights = weights.new_zeros(len(hidden_states)).index_put((tokens,), weights)[rows]
                tokens = rows
            elif not len(tokens):
                continue
            part = expert(hidden_states[tokens]) * weights[:, None]
            y.index_add_(0, tokens, part.to(y.dtype))
        return y

    def _all(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The same sum, every expert computed for every token."""
        y = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            weight = (top_k_weights * (top_k_index == number)).sum(dim=1, keepdim=True)
            y = y + expert(hidden_states) * weight.to(y.dtype)
        return y

    def counts(self) -> Tensor:
        """Of the last forward, tokens that were sent to each expert and tokens that it was shown, (experts, 2)."""
        assert self.chosen is not None
        sent = torch.bincount(self.chosen.flatten(), minlength=len(self))
        if self.shown is None:
            return torch.stack([sent, sent], dim=1)
        shown = self.shown.of(self.chosen)
        return torch.stack([sent, sent.new_tensor([len(shown(number)) for number in range(len(self))])], dim=1)


class Shown:
    """Tokens that experts are shown while their inputs are gathered; what is not sent to one counts nothing after it.

    Every expert is called, so that a forward that is suspended at every linear stops equally often whatever the text.

    Args:
        share: of the tokens of a forward that each expert is shown at least, see `planning/few_visits.py`. Tokens that
            the router sends elsewhere, evenly spaced, are added to those of an expert with fewer.
        first: experts of another model's block, whose forward over the same tokens came before: what its experts were
            shown comes first, in their order, so that two models are compared token by token where their routers
            differ.
    """

    def __init__(self, share: float = 0.0, first: ExpertList | None = None) -> None:
        self._share, self._first = share, first

    def of(self, chosen: Tensor) -> Callable[[int], Tensor]:
        """Expert -> its tokens, in the order in which it is shown them. Called when a forward reaches the experts: the
        other model's, of the same tokens, has just reached its own.

        Args:
            chosen: experts of each token (T, k).
        """
        if self._first is None:
            return partial(self._rows, chosen)
        assert self._first.chosen is not None and self._first.shown is not None
        first = self._first.shown.of(self._first.chosen)

        def rows(number: int) -> Tensor:
            before = first(number)
            return torch.cat([before, torch.where(_sent(chosen, number).index_fill(0, before, False))[0]])

        return rows

    def _rows(self, chosen: Tensor, number: int) -> Tensor:
        sent = _sent(chosen, number)
        rows, others = torch.where(sent)[0], torch.where(~sent)[0]
        more = min(len(others), max(0, ceil(self._share * len(sent)) - len(rows)))
        spaced = torch.arange(more, device=others.device) * len(others) // max(1, more)
        return torch.cat([rows, others[spaced]])


def _sent(chosen: Tensor, number: int) -> Tensor:
    """Whether each token is sent to an expert, (T,)."""
    return (chosen == number).any(dim=1)


def separate_experts(model: nn.Module, family: Family) -> None:
    """Put an `ExpertList` in place of the stacked experts of every block, in place; its weights are parts of theirs.

    Args:
        model: of transformers, with weights or without.
        family: of the model.
    """
    if family.experts is None:
        return
    for block in model.get_submodule(family.blocks).children():
        stacked = block.get_submodule(family.experts.path)
        if not isinstance(stacked, ExpertList):
            block.set_submodule(family.experts.path, ExpertList(list(_separated(stacked, family.experts))))


def experts_of(block: nn.Module, family: Family) -> ExpertList | None:
    """The experts of a block; None where the family has none."""
    if family.experts is None:
        return None
    found = block.get_submodule(family.experts.path)
    assert isinstance(found, ExpertList)
    return found


def _separated(stacked: nn.Module, names: Experts) -> Iterator[Expert]:
    gate_up, down = stacked.get_parameter("gate_up_proj"), stacked.get_parameter("down_proj")
    for both, last in zip(gate_up.detach(), down.detach(), strict=True):
        linears = [_linear(weight) for weight in (*both.chunk(2), last)]
        yield Expert(names, (linears[0], linears[1], linears[2]), stacked.get_submodule("act_fn"))


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight)
    return linear
