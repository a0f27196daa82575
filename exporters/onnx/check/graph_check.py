"""What the graph says about itself: valid ONNX, and an attention that is the torch model's in every number.

A window of 48 tokens cannot show that a block should see 4096 positions, or that a table ends too early; a graph can.
"""

from __future__ import annotations

from dataclasses import fields
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....converter.core.errors import InputError
from ..contents import model_file
from ..session import one_line
from .check_windows import AttentionFacts

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

LARGEST_GRAPH = 2**31 - 1
"""Bytes protobuf can hold; weights lie outside, so that only a graph of very many nodes comes near."""

_ATTENTION = "GroupQueryAttention"
_COSINES = 7  # input of the attention operator
_TOLERANCE = 1e-5  # relative, between a float32 attribute and Python's


def check_graph(folder: Path, attention: tuple[AttentionFacts, ...], context: int) -> None:
    """Run ONNX's checker and compare every attention node with the torch module it stands for.

    Args:
        folder: what the exporter wrote.
        attention: of every block, from torch.
        context: positions the model knows.

    Raises:
        InputError: not valid ONNX, too large for protobuf, or an attention that differs; one line names the block.
    """
    import onnx

    path = model_file(folder)
    if path.stat().st_size > LARGEST_GRAPH:
        raise InputError(f"{path}: {path.stat().st_size} bytes, protobuf holds 2 GB: this model has too many nodes")
    graph = onnx.load(str(path), load_external_data=False)
    _check_attention(graph.graph, attention, context)
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise InputError(f"{path}: not a valid ONNX model: {one_line(error)}") from error


def _check_attention(graph: GraphProto, expected: tuple[AttentionFacts, ...], context: int) -> None:
    """Graphs without the fused operator pass: there the numbers are spread over many nodes, and windows must do."""
    nodes = [node for node in graph.node if node.op_type == _ATTENTION]
    if not nodes:
        return
    if len(nodes) != len(expected):
        raise InputError(f"the ONNX graph has {len(nodes)} attention nodes, the torch model {len(expected)} blocks")
    rows = {tensor.name: tensor.dims[0] for tensor in graph.initializer if len(tensor.dims) == 2}
    for block, (node, facts) in enumerate(zip(nodes, expected, strict=True)):
        found = _facts(node)
        wrong = [
            f"{field.name} {getattr(found, field.name)} instead of {getattr(facts, field.name)}"
            for field in fields(AttentionFacts)
            if not isclose(getattr(found, field.name), getattr(facts, field.name), rel_tol=_TOLERANCE)
        ]
        table = node.input[_COSINES] if len(node.input) > _COSINES else ""
        if rows.get(table, context) < context:
            wrong.append(f"rotary angles for {rows[table]} positions instead of {context}")
        if wrong:
            raise InputError(
                f"the ONNX graph's attention in block {block} has {', '.join(wrong)}; this model cannot be exported"
            )


def _facts(node: NodeProto) -> AttentionFacts:
    import onnx

    values: dict[str, Any] = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    return AttentionFacts(
        heads=values["num_heads"],
        key_value_heads=values["kv_num_heads"],
        scale=values.get("scale", 0.0),
        softcap=values.get("softcap", 0.0),
        window=values.get("local_window_size", -1),
    )
