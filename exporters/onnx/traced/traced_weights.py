"""The types of stored matrices in a traced graph: codes, or float16.

A trace forgets which matrix belonged to which module, so matrices are found by their values.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any, cast

from ..graph_edits import add_initializer, replace_node
from ..weights.quantize import QuantizedMatrix
from ..weights.stored import StoredWeights

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

_MICROSOFT = "com.microsoft"


def store_codes(model: ir.Model, weights: StoredWeights) -> None:
    """Put codes in the place of encoded matrices, in place: MatMulNBits multiplies, GatherBlockQuantized looks up.

    Args:
        model: its matrices hold what the codes stand for, to the bit. Tied ones are stored once.
        weights: the codes.
    """
    graph = model.graph
    model.opset_imports.setdefault(_MICROSOFT, 1)
    known = {_digest(cast(Any, module.weight).detach().numpy()): matrix for module, matrix in weights.encoded.items()}
    stored: dict[int, list[Any]] = {}
    for node in list(graph):
        found = _matrix(node)
        matrix = None if found is None else known.get(_digest(found[1]))
        if found is None or matrix is None:
            continue
        inputs = stored.setdefault(id(matrix), []) or _add_codes(graph, found[0], matrix, stored[id(matrix)])
        if node.op_type == "Gather":
            replace_node(graph, node, _lookup(graph, node, matrix, inputs))
        else:
            replace_node(graph, node, _product(node, matrix, inputs, weights.accuracy_level))
    _drop_unused(graph)


def store_half(model: ir.Model) -> None:
    """Store every matrix that is multiplied with or looked up in float16; ONNX Runtime widens it when it loads."""
    import numpy as np
    import onnx_ir as ir

    graph = model.graph
    matrices = {found[0].name: found[0] for node in graph if (found := _matrix(node)) is not None}
    for name, value in matrices.items():
        half = add_initializer(graph, f"{name}.half", value.const_value.numpy().astype(np.float16))
        cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT}, name=f"{name}/Cast")
        cast.outputs[0].shape, cast.outputs[0].type = value.shape, value.type
        graph.insert_before(next(iter(graph)), [cast])
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
    _drop_unused(graph)


def _matrix(node: Any) -> tuple[Any, NDArray[Any]] | None:
    """The stored matrix that a node multiplies with or looks up in, and its values as rows of outputs, or of tokens."""
    if node.domain or node.op_type not in ("MatMul", "Gemm", "Gather"):
        return None
    lookup = node.op_type == "Gather"
    value, rows_first = node.inputs[0 if lookup else 1], lookup
    if node.op_type == "Gemm":
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0 or attributes.get("transA", 0):
            return None
        rows_first = bool(attributes.get("transB", 0))
    producer = value.producer()
    if producer is not None and producer.op_type == "Transpose" and producer.inputs[0].const_value is not None:
        value, rows_first = producer.inputs[0], not rows_first
    if value.const_value is None or value.shape is None or len(value.shape) != 2 or not _is_float32(value):
        return None
    values = value.const_value.numpy()
    return value, values if rows_first else values.T


def _is_float32(value: Any) -> bool:
    import onnx_ir as ir

    return bool(value.const_value.dtype == ir.DataType.FLOAT)


def _digest(values: NDArray[Any]) -> bytes:
    return blake2b(repr(values.shape).encode() + values.tobytes(), digest_size=16).digest()


def _add_codes(graph: Any, value: Any, matrix: QuantizedMatrix, inputs: list[Any]) -> list[Any]:
    """Fill `inputs` with codes, scales and, where there are some, zero points."""
    parts = {"qweight": matrix.qweight, "scales": matrix.scales, "qzeros": matrix.qzeros}
    for kind, part in parts.items():
        if part is not None:
            inputs.append(add_initializer(graph, f"{value.name}.{kind}", part.numpy()))
    return inputs


def _product(node: Any, matrix: QuantizedMatrix, stored: list[Any], accuracy_level: int) -> list[Any]:
    import onnx_ir as ir

    codes, scales, *zeros = stored
    attributes = {
        "K": matrix.in_features,
        "N": matrix.out_features,
        "bits": matrix.bits,
        "block_size": matrix.group_size,
        "accuracy_level": accuracy_level,
    }
    inputs = [node.inputs[0], codes, scales, *zeros]
    product = ir.node("MatMulNBits", inputs, attributes, domain=_MICROSOFT, name=f"{node.name}_nbits")
    if node.op_type == "MatMul" or len(node.inputs) < 3:
        return [product]
    return [product, ir.node("Add", [product.outputs[0], node.inputs[2]], name=f"{node.name}_bias")]


def _lookup(graph: Any, node: Any, matrix: QuantizedMatrix, stored: list[Any]) -> list[Any]:
    import numpy as np
    import onnx_ir as ir

    codes, scales, *zeros = stored
    width = int(np.prod(matrix.qweight.shape[1:]))
    shape = add_initializer(graph, f"{node.name}.flat", np.array([matrix.out_features, width], dtype=np.int64))
    flat = ir.node("Reshape", [codes, shape], name=f"{node.name}_flat")
    attributes = {"bits": matrix.bits, "block_size": matrix.group_size, "gather_axis": 0, "quantize_axis": 1}
    inputs = [flat.outputs[0], node.inputs[1], scales, *zeros]
    lookup = ir.node("GatherBlockQuantized", inputs, attributes, domain=_MICROSOFT, name=f"{node.name}_nbits")
    if width * 8 // matrix.bits == matrix.in_features:
        return [flat, lookup]
    bounds = [
        add_initializer(graph, f"{node.name}.{part}", np.array([number], dtype=np.int64))
        for part, number in (("start", 0), ("end", matrix.in_features), ("axis", -1))
    ]
    return [flat, lookup, ir.node("Slice", [lookup.outputs[0], *bounds], name=f"{node.name}_slice")]


def _drop_unused(graph: Any) -> None:
    """Remove the float32 matrices, and transpositions of them, that nothing reads any more."""
    for node in reversed(list(graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            graph.remove(node, safe=True)
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
