"""What ONNX Runtime GenAI's model builder can express of rotary embeddings and heads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ....converter.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

ROTARY = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles are one table, whatever the length of the text."""

HEAD_STEP = 16
"""Numbers per attention head must be a multiple: ONNX Runtime's GroupQueryAttention with rotary embedding."""


def rotary_kinds(config: Any) -> dict[str, str]:
    """Kind of block -> type of rotary embedding; the kind is "" where all blocks share one."""
    parameters = config.rope_parameters
    if all(isinstance(value, dict) or value is None for value in parameters.values()) and parameters:
        return {kind: value.get("rope_type", "default") for kind, value in parameters.items() if value is not None}
    return {"": parameters.get("rope_type", "default")}


def check_rotary(config: Any, where: str) -> None:
    """Refuse rotary embeddings that are not one table per kind of block.

    Raises:
        InputError: "dynamic" or "longrope", whose angles change with the length of the text, or an unknown type.
    """
    for kind in rotary_kinds(config).values():
        if kind not in ROTARY:
            raise InputError(
                f"{where}: its {kind!r} rotary embedding cannot be exported to ONNX: its angles are not one table for "
                f"all lengths of text; supported: {', '.join(ROTARY)}"
            )


def check_head_size(config: Any, where: str) -> None:
    """Refuse heads the fused attention has no kernel for.

    Raises:
        InputError: the size of a head is not a multiple of `HEAD_STEP`.
    """
    size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    if size % HEAD_STEP:
        raise InputError(
            f"{where}: attention heads of {size} numbers cannot be exported to ONNX: ONNX Runtime's fused rotary "
            f"attention takes multiples of {HEAD_STEP}"
        )


def rotary_tables(rotary: Any, length: int, kind: str = "") -> tuple[Tensor, Tensor]:
    """Cosines and sines as the torch model itself computes them, (length, rotated width) float32 each.

    Args:
        rotary: the model's rotary module.
        length: positions.
        kind: of the blocks, where they differ.
    """
    import torch

    prefix = f"{kind}_" if kind else ""
    frequencies = getattr(rotary, f"{prefix}inv_freq").float()
    scaling = float(getattr(rotary, f"{prefix}attention_scaling"))
    angles = torch.outer(torch.arange(length, dtype=torch.int64).float(), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * scaling, angles.sin() * scaling
