"""What a model's forward gives its blocks beside the residual stream: masks, rotary embeddings, positions.

transformers' own forward is asked: it runs once per length of windows over blocks that compute nothing and note what
they are called with. So sliding windows, a rotary embedding per kind of block, and whatever else a family has, are its.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..families.family import Family


class _Noted(nn.Module):
    """Stands in a block's place: keeps what it was called with last and gives back the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.x = torch.empty(0)
        self.arguments: Mapping[str, Any] = {}

    def forward(self, x: Tensor, **arguments: Any) -> Tensor:
        self.x, self.arguments = x, arguments
        return x


class BlockArguments:
    """The arguments of every block of a model, beside the residual stream, and what is added to embeddings.

    Args:
        skeleton: the model, without weights.
        family: its architecture.
        config: its configuration.
        device: where the arguments are put.
        dtype: of the residual stream.
        positions: weight of the learned embedding of positions, where the family has one.
    """

    def __init__(
        self,
        skeleton: nn.Module,
        family: Family,
        config: Any,
        device: torch.device,
        dtype: torch.dtype,
        positions: Tensor | None = None,
    ) -> None:
        inner, _, _ = family.blocks.rpartition(".")
        frame = copy.deepcopy(skeleton)  # of no weights, hence small
        self._noted = [_Noted() for _ in range(config.num_hidden_layers)]
        frame.set_submodule(family.blocks, nn.ModuleList(self._noted))
        frame.set_submodule(family.norm, nn.Identity())
        if family.rotary:
            frame.set_submodule(family.rotary, type(skeleton.get_submodule(family.rotary))(config=config).to(device))
        if positions is not None:
            frame.get_submodule(family.positions).load_state_dict({"weight": positions}, assign=True)
        self._forward = frame.get_submodule(inner)
        self._like = torch.zeros(1, 1, config.hidden_size, device=device, dtype=dtype)
        self._length = 0

    def of(self, block: int, length: int) -> Mapping[str, Any]:
        """The arguments of one block for windows of `length` tokens, the same for every window."""
        self._prepare(length)
        return self._noted[block].arguments

    def added(self, length: int) -> Tensor:
        """What the forward adds to the embeddings of `length` tokens, (1, T, d)."""
        self._prepare(length)
        return self._noted[0].x

    def _prepare(self, length: int) -> None:
        if length != self._length:
            with torch.no_grad():
                self._forward(inputs_embeds=self._like.expand(1, length, -1), use_cache=False)
            self._length = length
