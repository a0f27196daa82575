"""Nodes for matrices that upstream stores otherwise: float16 weights, and embeddings of codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..weights.quantize import QuantizedMatrix

if TYPE_CHECKING:
    from torch import Tensor


def half_matmul(
    builder: Any, matmul: Any, name: str, root_input: str, *, logits: bool = False, seq_dim: Any = "sequence_length"
) -> str:
    """A matmul with a float16 weight that ONNX Runtime makes float32 once, when it loads the model."""
    import onnx_ir as ir

    rows, columns = matmul.weight.shape
    weight = name[1:].replace("/", ".") + ".weight"
    builder.make_initializer(matmul.weight.T, weight, to=ir.DataType.FLOAT16)
    builder.make_cast(f"{name}/Cast", weight, builder.io_dtype, [columns, rows])
    output = "logits" if logits else f"{name}/output_0"
    builder.make_node("MatMul", inputs=[root_input, f"{name}/Cast/output_0"], outputs=[output], name=name)
    builder.make_value(output, builder.io_dtype, builder.make_hidden_state_shape(seq_dim=seq_dim, last_dim=rows))
    return name


def half_lookup(builder: Any, embedding: Tensor, basename: str) -> str:
    """Look tokens up in a float16 embedding, the output head's where they are tied."""
    import onnx_ir as ir

    table, half = "model.embed_tokens.weight", ir.DataType.FLOAT16
    if builder.tied_unquantized_embeddings:
        turn = f"{basename}/Transpose"
        builder.make_transpose(turn, "lm_head.MatMul.weight", half, list(embedding.shape), [1, 0])
        table = f"{turn}/output_0"
    else:
        builder.make_initializer(embedding, table, to=half)
    gather, shape = f"{basename}/Gather", builder.make_hidden_state_shape()
    builder.make_gather(gather, [table, builder.input_names["input_ids"]], half, shape, axis=0)
    builder.make_cast(f"{basename}/Cast", f"{gather}/output_0", builder.io_dtype, shape)
    return f"{basename}/Cast/output_0"


def quantized_lookup(builder: Any, table: QuantizedMatrix, basename: str) -> str:
    """Look tokens up in an embedding of codes of its own (upstream quantizes only a shared one)."""
    import onnx_ir as ir

    flat = table.qweight.reshape(table.out_features, -1)
    builder.make_initializer(flat, "model.embed_tokens.qweight")
    builder.make_initializer(table.scales, "model.embed_tokens.scales", to=ir.DataType.FLOAT)
    inputs = ["model.embed_tokens.qweight", builder.input_names["input_ids"], "model.embed_tokens.scales"]
    if table.qzeros is not None:
        builder.make_initializer(table.qzeros, "model.embed_tokens.qzeros")
        inputs.append("model.embed_tokens.qzeros")
    gather, output = f"{basename}/GatherBlockQuantized", f"{basename}/GatherBlockQuantized/output_0"
    builder.make_node(
        "GatherBlockQuantized",
        inputs=inputs,
        outputs=[output],
        name=gather,
        domain="com.microsoft",
        bits=table.bits,
        block_size=table.group_size,
        gather_axis=0,
        quantize_axis=1,
    )
    padded = flat.shape[1] * 8 // table.bits
    if padded == table.in_features:
        return output
    builder.make_value(output, builder.io_dtype, shape=builder.make_hidden_state_shape(last_dim=padded))
    bounds = [f"/model/constants/INT64/[{value}]" for value in (0, table.in_features, -1)]  # start, end, axis
    builder.make_slice(f"{basename}/Slice", [output, *bounds], builder.io_dtype, builder.make_hidden_state_shape())
    return f"{basename}/Slice/output_0"
