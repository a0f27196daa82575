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
    """Stands in a block's place: keeps the arguments of the last call and gives back the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: Mapping[str, Any] = {}

    def forward(self, x: Tensor, **arguments: Any) -> Tensor:
        self.arguments = arguments
        return x


class BlockArguments:
    """The arguments of every block of a model, beside the residual stream.

    Args:
        skeleton: the model, without weights.
        family: its architecture.
        config: its configuration.
        device: where the arguments are put.
        dtype: of the residual stream.
    """

    def __init__(
        self, skeleton: nn.Module, family: Family, config: Any, device: torch.device, dtype: torch.dtype
    ) -> None:
        inner, _, _ = family.blocks.rpartition(".")
        frame = copy.deepcopy(skeleton)  # of no weights, hence small
        self._noted = [_Noted() for _ in range(config.num_hidden_layers)]
        frame.set_submodule(family.blocks, nn.ModuleList(self._noted))
        frame.set_submodule(family.norm, nn.Identity())
        if family.rotary:
            frame.set_submodule(family.rotary, type(skeleton.get_submodule(family.rotary))(config=config).to(device))
        self._forward = frame.get_submodule(inner)
        self._like = torch.zeros(1, 1, config.hidden_size, device=device, dtype=dtype)
        self._length = 0

    def of(self, block: int, length: int) -> Mapping[str, Any]:
        """The arguments of one block for windows of `length` tokens, the same for every window."""
        if length != self._length:
            with torch.no_grad():
                self._forward(inputs_embeds=self._like.expand(1, length, -1), use_cache=False)
            self._length = length
        return self._noted[block].arguments
