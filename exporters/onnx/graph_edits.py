"""Small edits of an `onnx_ir` graph: a node replaced by others, a new constant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def replace_node(graph: Any, node: Any, new: Sequence[Any]) -> None:
    """Put nodes in another's place; the last one's output takes over its name, shape and type."""
    import onnx_ir as ir

    old, output = node.outputs[0], new[-1].outputs[0]
    output.name, output.shape, output.type = old.name, old.shape, old.type
    graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(old, output, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def add_initializer(graph: Any, name: str, values: Any) -> Any:
    """A constant of the graph, from a numpy array."""
    import onnx_ir as ir

    tensor = ir.tensor(values, name=name)
    value = ir.Value(name=name, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
