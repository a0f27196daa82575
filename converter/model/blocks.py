"""A model read block by block: never more than one block's weights in memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.expert_modules import separate_experts
from ..checkpoint.layouts import PERM_SUFFIX, Layout
from ..checkpoint.lowrank_linear import replace_linears
from ..checkpoint.reader import CheckpointReader
from ..core.errors import InputError
from ..factors.finite import all_finite
from ..families.family import Family
from . import attention
from .block_arguments import BlockArguments
from .config_check import check_config
from .head import Head
from .loading import quiet_transformers, refusing, transformers_config

INDEX = "index_in_model"  # attribute of a block: its number


class BlockSource:
    """Gives the embedding and each block of a checkpoint, dense or factored, as modules on a device.

    Args:
        reader: of the checkpoint.
        family: its architecture.
        device: where blocks are put.
        dtype: of the weights and of the residual stream.
        bfloat16: whether linears and attention inside a block's forward multiply in bfloat16.

    Raises:
        InputError: a tensor is missing, has another shape than the config says, or holds NaN or Inf.
    """

    def __init__(
        self,
        reader: CheckpointReader,
        family: Family,
        device: torch.device,
        dtype: torch.dtype,
        bfloat16: bool = False,
    ) -> None:
        from transformers import AutoModelForCausalLM

        self.reader, self.family, self.device, self.dtype = reader, family, device, dtype
        self.bfloat16 = bfloat16
        check_config(reader, family)
        config: Any = transformers_config(reader)
        self.attention = attention.register(device, bfloat16, config)
        with refusing(reader.path, "transformers cannot build this model"), quiet_transformers(), torch.device("meta"):
            factory: Any = AutoModelForCausalLM
            self._skeleton: nn.Module = factory.from_config(config, dtype=dtype, attn_implementation=self.attention)
        separate_experts(self._skeleton, family)
        in_order = [linear for linear in reader.ranks if linear + PERM_SUFFIX not in reader.names]
        layout: Layout = "pivot" if reader.layout == "pivot" else "two-factor"
        try:
            replace_linears(self._skeleton, reader.ranks, layout, in_order)
        except KeyError as name:
            raise InputError(f"{reader.path}: config.json names a linear that the model lacks: {name}") from None
        self._skeleton.eval()
        with refusing(reader.path, "transformers cannot build this model"):
            positions = self._weight(family.positions) if family.positions else None
            self._arguments = BlockArguments(self._skeleton, family, config, device, dtype, positions)
        self._embedding_scale, self._logit_scale = family.embedding_scale(config), family.logit_scale(config)
        self._logit_cap: float | None = getattr(config, "final_logit_softcapping", None)
        self.block_count = int(config.num_hidden_layers)
        self.window_limit = int(config.max_position_embeddings)
        self._pictures: Tensor | None = None

    def see(self, features: Tensor) -> None:
        """Give features of pictures (K, d) the numbers that follow those of the vocabulary and of features before."""
        self._pictures = features if self._pictures is None else torch.cat([self._pictures, features])

    @property
    def seen(self) -> int:
        """How many features of pictures have numbers."""
        return 0 if self._pictures is None else len(self._pictures)

    def embed(self, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
        """Token ids, (B, T) each -> residual streams (B, T, d). The embedding is mapped in once, and let go.

        Ids beyond the vocabulary are features of pictures, see `see`.
        """
        name = self.family.embedding + ".weight"
        weight = self._stored(name, tuple(self._skeleton.get_parameter(name).shape))
        for tokens in chunks:
            ids = tokens.cpu().long()
            embedded = nn.functional.embedding(ids.clamp(max=len(weight) - 1), weight)
            stream = self.entered(embedded.to(self.device, self.dtype))
            if self._pictures is not None:
                pictured = ids >= len(weight)
                seen = self._pictures[ids[pictured] - len(weight)]
                stream[pictured.to(self.device)] = seen.to(self.device, self.dtype)
            yield stream

    def entered(self, embedded: Tensor) -> Tensor:
        """Embeddings of windows (B, T, d), as stored -> what the first block reads: scaled, with learned positions."""
        stream = embedded if self._embedding_scale == 1.0 else embedded * self._embedding_scale
        return stream + self._arguments.added(stream.shape[1]) if self.family.positions else stream

    def block(self, index: int) -> nn.Module:
        """A fresh copy of block `index` with its weights, on the device, in evaluation mode."""
        prefix = f"{self.family.blocks}.{index}"
        block = copy.deepcopy(self._skeleton.get_submodule(prefix))
        state = {name: self._tensor(f"{prefix}.{name}", tuple(meta.shape)) for name, meta in block.state_dict().items()}
        block.load_state_dict(state, strict=True, assign=True)
        setattr(block, INDEX, index)
        return block.requires_grad_(False)

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """The forward of a block made by `block` over the residual stream (B, T, d), as in the whole model."""
        arguments = self._arguments.of(getattr(block, INDEX), x.shape[1])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            y = block(x, **arguments)
        result: Tensor = y[0] if isinstance(y, tuple) else y
        return result

    def project(self, weight: Tensor, x: Tensor) -> Tensor:
        """x W^T as the forward computes it, (T, m) from (T, n) and W (m, n)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            return nn.functional.linear(x, weight)

    def head(self) -> Head:
        """The final norm and the head, on the device."""
        norm_path, head_path = self.family.norm, self.family.head + ".weight"
        norm = copy.deepcopy(self._skeleton.get_submodule(norm_path))
        state = {name: self._tensor(f"{norm_path}.{name}", tuple(t.shape)) for name, t in norm.state_dict().items()}
        norm.load_state_dict(state, strict=True, assign=True)
        stored = head_path if head_path in self.reader.names else self.family.embedding + ".weight"  # tied
        weight = self._tensor(stored, tuple(self._skeleton.get_parameter(head_path).shape))
        weight = weight if self._logit_scale == 1.0 else weight * self._logit_scale
        return Head(norm.requires_grad_(False), weight, self._logit_cap)

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Full name -> (out, in) of every linear of the blocks, from the file headers."""
        names = [self.family.linear_name(b, linear) for b in range(self.block_count) for linear in self.family.linears]
        shapes = {}
        for name in names:
            shape = self.reader.shape(name + ".weight")
            if len(shape) != 2:
                raise InputError(f"{self.reader.path}: {name}.weight has shape {shape}, expected a matrix")
            shapes[name] = (shape[0], shape[1])
        return shapes

    def _weight(self, module: str) -> Tensor:
        name = module + ".weight"
        return self._tensor(name, tuple(self._skeleton.get_parameter(name).shape))

    def _tensor(self, name: str, expected: tuple[int, ...]) -> Tensor:
        tensor = self._stored(name, expected)
        made = tensor.to(self.device, self.dtype if tensor.is_floating_point() else tensor.dtype)
        if made.dtype == torch.float16 and not bool(torch.isfinite(made).all()):
            raise InputError(f"{self.reader.path}: {name} goes beyond the range of float16; use another --dtype")
        return made

    def _stored(self, name: str, expected: tuple[int, ...]) -> Tensor:
        """A tensor as stored, checked; a part of the file mapped into memory."""
        if self.reader.shape(name) != expected:
            found = self.reader.shape(name)
            raise InputError(f"{self.reader.path}: {name} has shape {found}, but config.json says {expected}")
        tensor = self.reader.tensor(name)
        if not all_finite(tensor):
            raise InputError(f"{self.reader.path}: {name} holds NaN or Inf")
        return tensor
