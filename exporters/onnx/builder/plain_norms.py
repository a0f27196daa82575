"""Norms in ONNX's own operators, for ONNX's checker and for readers other than ONNX Runtime.

The builder writes `SimplifiedLayerNormalization`, which ONNX Runtime keeps in ONNX's domain, though ONNX has no such
operator. Written out, ONNX Runtime makes the same one of it again when it loads the graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..graph_edits import add_initializer, replace_node

if TYPE_CHECKING:
    import onnx_ir as ir

FUSED = "SimplifiedLayerNormalization"


def write_out_norms(model: ir.Model) -> None:
    """Replace every node x, w -> w x / sqrt(mean(x^2) + epsilon), over the last axis, by six plain ones, in place."""
    import onnx_ir as ir

    graph = model.graph
    constants: dict[str, Any] = {}

    def constant(name: str, values: Any) -> Any:
        if name not in constants:
            constants[name] = add_initializer(graph, name, values)
        return constants[name]

    for node in [node for node in graph if node.op_type == FUSED]:
        epsilon = np.float32(node.attributes["epsilon"].value)
        x, weight = node.inputs
        inputs: dict[str, list[Any]] = {
            "Pow": [x, constant("norm.exponent", np.float32(2))],
            "ReduceMean": [constant("norm.axis", np.array([-1], dtype=np.int64))],
            "Add": [constant(f"norm.epsilon_{epsilon:g}", epsilon)],
            "Sqrt": [],
            "Div": [],
            "Mul": [weight],
        }
        new: list[Any] = []
        for kind, others in inputs.items():
            before = [new[-1].outputs[0]] if new else []
            if kind == "Div":
                before = [x, *before]
            new.append(ir.node(kind, [*before, *others], name=f"{node.name}/{kind}"))
            new[-1].outputs[0].name = f"{node.name}/{kind}/output_0"
        replace_node(graph, node, new)
