"""Policy: how the matrices of a file are rounded, and what the rounding knows of their inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...converter.core.errors import InputError, UsageError
from ...converter.core.nearest import nearest
from ..artifact import TensorRecord
from .imatrix import read_imatrix
from .mixes import EMBEDDING, HEAD
from .types import INTEGERS, TYPES

How = Literal["plain", "aware"]


@dataclass(frozen=True)
class Rounding:
    """How weights are rounded to their types.

    Attributes:
        how: "plain", every block of weights by itself; or "aware", GPTQ, see `gptq_tensors.round_linears`.
        imatrix: an importance matrix for "plain".
        calibration: the text that "aware" runs, where it is not the one that the checkpoint records.
        device: that "aware" runs it on: "auto", "cpu", "cuda".
    """

    how: str = "plain"
    imatrix: Path | None = None
    calibration: str | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.how not in get_args(How):
            raise UsageError(f"--gguf-rounding {self.how}: unknown rounding{nearest(self.how, get_args(How))}")
        if self.how == "aware" and self.imatrix is not None:
            raise UsageError("--gguf-imatrix: aware rounding measures its own importance; give one of the two")
        if self.how == "plain" and self.calibration is not None:
            raise UsageError("--calibration: plain rounding runs no text; add --gguf-rounding aware")

    @property
    def recorded(self) -> str | None:
        """What a file records of it; None for plain rounding."""
        return self.how if self.how != "plain" else None if self.imatrix is None else "imatrix"

    def encodes(self, tensor: TensorRecord) -> bool:
        """Whether aware rounding encodes a tensor: a matrix of a block, in a type with blocks of weights."""
        matrix = tensor.name.startswith("blk.") and len(tensor.shape) > 1
        return self.how == "aware" and matrix and TYPES[tensor.type].block > 1

    def weighed_head(self, tensors: Iterable[TensorRecord]) -> str | None:
        """The output head, or the embedding that serves as one, where aware rounding weighs its errors: in a type with
        blocks of weights, not in factors."""
        types = {tensor.name: tensor.type for tensor in tensors}
        name = next((name for name in (f"{HEAD}.weight", f"{EMBEDDING}.weight") if name in types), None)
        factored = any(name.startswith(f"{HEAD}.lowrank") for name in types)
        if self.how != "aware" or name is None or factored or TYPES[types[name]].block == 1:
            return None
        return name

    def importance(self, tensors: Iterable[TensorRecord]) -> Mapping[str, NDArray[np.float32]]:
        """The importance of the columns of tensors that are rounded plainly, by name.

        Args:
            tensors: of the file.

        Raises:
            UsageError: a type needs an importance that nothing gives.
            InputError: the importance matrix is damaged, or of another model.
        """
        tensors = [tensor for tensor in tensors if tensor.type != INTEGERS]
        given = {} if self.imatrix is None else read_imatrix(self.imatrix)
        found = {tensor.name: given[tensor.name] for tensor in tensors if tensor.name in given}
        if given and not found:
            raise InputError(f"{self.imatrix}: holds nothing of this model's tensors")
        for tensor in tensors:
            known = tensor.name in found or (self.how == "aware" and tensor.name.startswith("blk."))
            if TYPES[tensor.type].importance and not known:
                raise UsageError(
                    f"{tensor.type} needs the importance of the inputs of {tensor.name}: add --gguf-rounding aware, or "
                    "an importance matrix with --gguf-imatrix"
                )
            inputs = (*tensor.shape[:-2], *tensor.shape[-1:])
            if tensor.name in found and found[tensor.name].shape != inputs:
                there, here = (" x ".join(map(str, shape)) for shape in (found[tensor.name].shape, inputs))
                raise InputError(f"{self.imatrix}: {tensor.name} has {there} inputs there, {here} here")
        return found
