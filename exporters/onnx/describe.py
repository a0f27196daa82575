"""An ONNX folder without the record that its export returned: what its graph says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import Any

from ...converter.core.errors import InputError
from ..artifact import Artifact, TensorRecord, main_type
from .check.folder_check import check_folder
from .contents import QUANTIZATION_KEY, model_bytes, model_facts, tensor_records

ROTARY_TABLES = ("cos_cache", "sin_cache")  # how they begin; stored in graphs, but no weights


def describe_onnx(folder: Path) -> Artifact:
    """The record of a folder. No weight is read.

    Raises:
        InputError: damaged.
    """
    model = check_folder(folder)
    packed: dict[str, int] = {}
    scales: set[str] = set()
    try:
        tensors = tensor_records(folder)
        for node in model.graph.node:
            if node.op_type == "MatMulNBits":
                sizes = {attribute.name: attribute.i for attribute in node.attribute}
                packed[node.input[1]] = sizes["K"] * sizes["N"]
                scales.update(node.input[2:])
            elif node.op_type == "GatherBlockQuantized":
                scales.update(node.input[2:])
    except Exception as error:  # onnx's own errors, among others
        raise InputError(f"{folder}: damaged ONNX model ({type(error).__name__})") from error
    weights = [  # a single number is a constant of the graph
        tensor
        for tensor in tensors
        if tensor.shape
        and tensor.name not in scales
        and not tensor.type.startswith("int")
        and not tensor.name.startswith(ROTARY_TABLES)
    ]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return Artifact(
        path=folder,
        format="onnx",
        quantization=metadata.get(QUANTIZATION_KEY) or _quantization(weights, model.graph.node),
        layout="dense" if metadata.get("lowrank.layout", "dense") == "dense" else "native",
        bytes=model_bytes(folder),
        parameters=sum(packed.get(tensor.name, prod(tensor.shape)) for tensor in weights),
        tensors=tensors,
        facts=model_facts(folder),
    )


def _quantization(weights: Sequence[TensorRecord], nodes: Iterable[Any]) -> str:
    """Of a folder that does not say it: codes of as many bits as most matmuls have, or the type of most weights."""
    bits = Counter(
        attribute.i
        for node in nodes
        if node.op_type == "MatMulNBits"
        for attribute in node.attribute
        if attribute.name == "bits"
    )
    return f"int{bits.most_common(1)[0][0]}" if bits else main_type(weights)
