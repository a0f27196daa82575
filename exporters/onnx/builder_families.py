"""Families ONNX Runtime GenAI's model builder writes, and what each needs besides: data, and small adaptations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...converter.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

ROTARY = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles are one table, whatever the length of the text."""

HEAD_STEP = 16
"""Numbers per attention head must be a multiple: ONNX Runtime's GroupQueryAttention with rotary embedding."""


@dataclass(frozen=True)
class BuilderFamily:
    """How one `model_type` is built.

    Attributes:
        class_name: the builder's class.
        genai_type: what GenAI calls the family, where it is not made from the architecture's name.
        adapt: rewrites a copy of the configuration into what the class reads.
    """

    class_name: str
    genai_type: str | None = None
    adapt: Callable[[Any], None] | None = None


def _flat_rotary(config: Any) -> None:
    """Gemma 3 keeps one set of rotary parameters per kind of block; the builder reads one and the other's base."""
    kinds = config.rope_parameters
    some = kinds.get("full_attention") or kinds.get("sliding_attention")
    config.rope_local_base_freq = (kinds.get("sliding_attention") or some)["rope_theta"]
    config.rope_parameters = dict(some)


def _window_everywhere(config: Any) -> None:
    """Mistral's and Phi-3's sliding window holds in every block, which the builder wants spelled out."""
    if getattr(config, "sliding_window", None) and getattr(config, "layer_types", None) is None:
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers


FAMILIES = {
    "llama": BuilderFamily("LlamaModel"),
    "mistral": BuilderFamily("MistralModel", adapt=_window_everywhere),
    "qwen2": BuilderFamily("QwenModel"),
    "qwen3": BuilderFamily("Qwen3Model"),
    "gemma": BuilderFamily("GemmaModel"),
    "gemma2": BuilderFamily("Gemma2Model"),
    "gemma3_text": BuilderFamily("Gemma3Model", genai_type="gemma3_text", adapt=_flat_rotary),
    "granite": BuilderFamily("GraniteModel"),
    "phi3": BuilderFamily("Phi3MiniModel", adapt=_window_everywhere),
}
"""config.json's `model_type` -> how it is built. Each was compared with torch in this project's tests."""


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
