"""8-bit weights in a traced graph: MatMul and Gemm become MatMulNBits, a Gather of embeddings GatherBlockQuantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .quantise import ACCURACY_LEVEL, QuantisedMatrix, quantise

if TYPE_CHECKING:
    import onnx_ir as ir

_EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")  # a tied one has either name; positions stay float32


def quantise_traced(model: ir.Model) -> None:
    """Replace every product with a stored matrix, and the token embedding, in place. Tied weights are stored once."""
    graph = model.graph
    model.opset_imports.setdefault("com.microsoft", 1)
    stored: dict[str, tuple[Any, Any, QuantisedMatrix]] = {}

    def encode(name: str, weight: Any) -> tuple[Any, Any, QuantisedMatrix]:
        """Initialisers of codes and scales for a matrix (rows, columns), made once per name."""
        if name not in stored:
            matrix = quantise(weight)
            values = (matrix.qweight.numpy(), matrix.scales.numpy())
            codes, scales = (
                _initializer(graph, f"{name}.{kind}", value) for kind, value in zip(_KINDS, values, strict=True)
            )
            stored[name] = codes, scales, matrix
        return stored[name]

    for node in list(graph):
        if node.op_type in ("MatMul", "Gemm") and not node.domain:
            _quantise_product(graph, node, encode)
        elif node.op_type == "Gather" and str(node.inputs[0].name).endswith(_EMBEDDINGS):
            _quantise_lookup(graph, node, encode)
    _drop_unused(graph)


_KINDS = ("qweight", "scales")
Encode = Callable[[str, Any], tuple[Any, Any, QuantisedMatrix]]


def _quantise_product(graph: Any, node: Any, encode: Encode) -> None:
    import onnx_ir as ir

    found = _matrix(node)
    if found is None:
        return
    codes, scales, matrix = encode(*found)
    attributes = {
        "K": matrix.in_features,
        "N": matrix.out_features,
        "bits": matrix.bits,
        "block_size": matrix.group_size,
        "accuracy_level": ACCURACY_LEVEL,
    }
    inputs = [node.inputs[0], codes, scales]
    product = ir.node("MatMulNBits", inputs, attributes, domain="com.microsoft", name=f"{node.name}_nbits")
    new = [product]
    if node.op_type == "Gemm" and len(node.inputs) > 2:
        new.append(ir.node("Add", [product.outputs[0], node.inputs[2]], name=f"{node.name}_bias"))
    _replace(graph, node, new)


def _matrix(node: Any) -> tuple[str, Any] | None:
    """Name and values, (rows, columns) = (outputs, inputs), of the stored matrix a node multiplies with."""
    value, rows_first = node.inputs[1], False
    if node.op_type == "Gemm":
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0 or attributes.get("transA", 0):
            return None
        rows_first = bool(attributes.get("transB", 0))
    producer = value.producer()
    if producer is not None and producer.op_type == "Transpose" and producer.inputs[0].const_value is not None:
        value, rows_first = producer.inputs[0], not rows_first
    if value.const_value is None or len(value.shape) != 2:
        return None
    import torch

    weight = torch.tensor(value.const_value.numpy())
    return str(value.name), weight if rows_first else weight.T.contiguous()


def _quantise_lookup(graph: Any, node: Any, encode: Encode) -> None:
    import numpy as np
    import onnx_ir as ir
    import torch

    table = node.inputs[0]
    codes, scales, matrix = encode(str(table.name), torch.tensor(table.const_value.numpy()))
    padded = int(np.prod(matrix.qweight.shape[1:]))
    shape = _initializer(graph, f"{table.name}.flat", np.array([matrix.out_features, padded], dtype=np.int64))
    flat = ir.node("Reshape", [codes, shape], name=f"{node.name}_flat")
    attributes = {"bits": matrix.bits, "block_size": matrix.group_size, "gather_axis": 0, "quantize_axis": 1}
    inputs = [flat.outputs[0], node.inputs[1], scales]
    lookup = ir.node("GatherBlockQuantized", inputs, attributes, domain="com.microsoft", name=f"{node.name}_nbits")
    new = [flat, lookup]
    if padded != matrix.in_features:
        bounds = [
            _initializer(graph, f"{table.name}.{part}", np.array([number], dtype=np.int64))
            for part, number in (("start", 0), ("end", matrix.in_features), ("axis", -1))
        ]
        new.append(ir.node("Slice", [lookup.outputs[0], *bounds], name=f"{node.name}_slice"))
    _replace(graph, node, new)


def _replace(graph: Any, node: Any, new: list[Any]) -> None:
    """Put nodes in another's place; the last one's output takes over its name, shape and type."""
    import onnx_ir as ir

    old, output = node.outputs[0], new[-1].outputs[0]
    output.name, output.shape, output.type = old.name, old.shape, old.type
    graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(old, output, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _initializer(graph: Any, name: str, values: Any) -> Any:
    import onnx_ir as ir

    tensor = ir.tensor(values, name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _drop_unused(graph: Any) -> None:
    """Remove the float32 matrices, and transpositions of them, that nothing reads any more."""
    for node in reversed(list(graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
