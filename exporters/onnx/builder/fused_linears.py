"""Phi-3 keeps q, k and v in one linear, and gate and up in another: one matmul each in the graph too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Some rows of a fused linear, standing where the builder looks for a linear of its own.

    Attributes:
        bias: these rows' bias, or None.
        node: the node whose first output holds the rows, once it exists.
    """

    bias: Tensor | None
    node: str = ""


def split_attention(attention: Any, query: int, key_value: int) -> None:
    """Give a block's attention `q_proj`, `k_proj` and `v_proj` that stand for the rows of its `qkv_proj`.

    Args:
        attention: the torch module.
        query, key_value: rows of q, and of k and of v.
    """
    bounds = (slice(0, query), slice(query, query + key_value), slice(query + key_value, None))
    for name, rows in zip(("q_proj", "k_proj", "v_proj"), bounds, strict=True):
        bias = attention.qkv_proj.bias
        setattr(attention, name, Part(None if bias is None else bias[rows]))


def split_gate_up(builder: Any, layer_id: int, mlp: Any, root_input: str) -> None:
    """Multiply a block's `gate_up_proj` and give the block a `gate_proj` and an `up_proj` that stand for its halves."""
    stem = f"/model/layers.{layer_id}/mlp"
    fused = mlp.gate_up_proj
    matmul = builder.make_matmul(fused, f"{stem}/gate_up_proj/MatMul", root_input)
    nodes = [f"{stem}/gate_proj", f"{stem}/up_proj"]
    width = fused.out_features // 2
    builder.make_split(
        f"{stem}/gate_up_proj/Split",
        inputs=[f"{matmul}/output_0", f"/model/constants/INT64/{[width, width]}"],
        outputs=[f"{node}/output_0" for node in nodes],
        dtypes=[builder.io_dtype] * 2,
        shapes=[builder.make_hidden_state_shape(last_dim=width)] * 2,
    )
    biases = (None, None) if fused.bias is None else fused.bias.split(width)
    mlp.gate_proj, mlp.up_proj = (Part(bias, node) for bias, node in zip(biases, nodes, strict=True))
