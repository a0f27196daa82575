"""The experts of a block as linears of their own: what takes the place of transformers' stacked parameters.

transformers keeps a linear of all experts in one parameter, (experts, out, in); files have a matrix per expert, and so
has this module, under the files' names. Hence an expert's linear is one like any other: read alone, tapped, replaced by
factors. It computes what transformers' does, expert by expert.
"""

from __future__ import annotations

from collections.abc import Iterator

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
        calls_all: whether experts are called that no token is sent to: a forward that is suspended at every expert's
            linears then stops equally often whatever the text.
        shown: another block's experts. Each expert here is shown the tokens that were sent to it there, first and in
            their order, before what else is sent to it here; what it makes of a token of the other block alone counts
            nothing. So two models are compared token by token where their routers differ.
    """

    def __init__(self, experts: list[Expert]) -> None:
        super().__init__(experts)
        self.calls_all = False
        self.shown: ExpertList | None = None
        self.chosen: Tensor | None = None  # experts of each token (T, k), of the last forward

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Sum over a token's experts of weight x expert(token).

        Args:
            hidden_states: tokens x features (T, d).
            top_k_index: experts of each token (T, k).
            top_k_weights: their weights (T, k).
        """
        self.chosen = top_k_index
        y = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            tokens, place = torch.where(top_k_index == number)
            weights = top_k_weights[tokens, place]
            if self.shown is not None:
                tokens, weights = self._beside(number, tokens, weights)
            if len(tokens) or self.calls_all:
                part = expert(hidden_states[tokens]) * weights[:, None]
                y.index_add_(0, tokens, part.to(y.dtype))
        return y

    def _beside(self, number: int, tokens: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of an expert in the other block, and then those of this one alone; and their weights here."""
        assert self.shown is not None and self.shown.chosen is not None
        others = torch.where(self.shown.chosen == number)[0]
        own = weights.new_zeros(len(self.shown.chosen)).index_put_((tokens,), weights)
        rows = torch.cat([others, tokens[~torch.isin(tokens, others)]])
        return rows, own[rows]


def separate_experts(model: nn.Module, family: Family) -> None:
    """Put an `ExpertList` of uninitialized linears in place of the stacked experts of every block, in place.

    Args:
        model: of transformers.
        family: of the model.
    """
    if family.experts is None:
        return
    for block in model.get_submodule(family.blocks).children():
        stacked = block.get_submodule(family.experts.path)
        block.set_submodule(family.experts.path, ExpertList(list(_separated(stacked, family.experts))))


def _separated(stacked: nn.Module, names: Experts) -> Iterator[Expert]:
    gate_up, down = stacked.get_parameter("gate_up_proj"), stacked.get_parameter("down_proj")
    inner, hidden = gate_up.shape[1] // 2, gate_up.shape[2]
    for _ in range(len(gate_up)):
        sizes = ((hidden, inner), (hidden, inner), (inner, hidden))
        linears = [nn.Linear(*size, bias=False, device=down.device, dtype=down.dtype) for size in sizes]
        yield Expert(names, (linears[0], linears[1], linears[2]), stacked.get_submodule("act_fn"))
