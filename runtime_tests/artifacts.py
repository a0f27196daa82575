"""What a file or folder holds, for artifacts that come without the record their export returned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import Any

from ..converter.core.errors import InputError
from ..converter.storage.gguf_header import read_header
from ..exporters.artifact import Artifact, TensorRecord
from ..exporters.gguf.adapter import LAYOUT as ADAPTER_LAYOUT
from ..exporters.gguf.adapter import RESIDUAL_KEY, find_adapter, read_records
from ..exporters.gguf.consistency import check_consistency
from ..exporters.gguf.mixes import exported_as, records
from ..exporters.gguf.types import TYPES
from .backends.formats import artifact_format

CHECKPOINT_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64", "I32": "i32"}
PERMUTATION = "i32"  # the order of rows of the pivot layout, no weights
ROTARY_TABLES = ("cos_cache", "sin_cache")  # how they begin; stored in ONNX graphs, but no weights


def find_artifacts(path: Path) -> list[Path]:
    """An artifact, or the .gguf files and ONNX folders that lie in a folder, by name.

    Raises:
        InputError: missing, or neither.
    """
    try:
        artifact_format(path)
    except InputError:
        inside = [] if not path.is_dir() else sorted(path.iterdir())
        found = [one for one in inside if one.suffix.lower() == ".gguf" or (one / "model.onnx").is_file()]
        if not found:
            raise
        return found
    return [path]


def describe(artifact: Artifact | Path) -> Artifact:
    """The record of an artifact, read from its headers if only its path is known. No weight is read.

    Raises:
        InputError: missing, damaged, or none of the known formats.
    """
    if isinstance(artifact, Artifact):
        return artifact
    kind = artifact_format(artifact)
    if kind == "gguf":
        return _describe_gguf(artifact)
    return _describe_onnx(artifact) if kind == "onnx" else _describe_checkpoint(artifact)


def _describe_gguf(path: Path) -> Artifact:
    header, residual = read_header(path), None
    try:
        check_consistency(header)
    except InputError as error:
        raise InputError(f"{path}: damaged GGUF file: {error}") from None
    asked = exported_as(header)
    if header.metadata.get("lowrank.layout") == ADAPTER_LAYOUT:
        tensors, layout = read_records(path, header, asked), ADAPTER_LAYOUT
        residual = header.metadata.get(RESIDUAL_KEY)
    else:
        tensors = tuple(TensorRecord(tensor.name, tensor.shape, tensor.type, tensor.bytes) for tensor in header.tensors)
        layout = "native" if "lowrank.version" in header.metadata else "dense"
        if asked is not None:
            meant = {record.name: record for record in records({t.name: t.shape for t in tensors}, asked)}
            tensors = tuple(meant[t.name] if meant[t.name].type == t.type else t for t in tensors)
    beside = find_adapter(path, header)
    weights = tensors[: len(header.tensors)]  # those of the model: an adapter's come on top of them
    return Artifact(
        path=path,
        format="gguf",
        quantisation=residual if residual in TYPES else asked.mix if asked else _main_type(tensors),
        layout=layout,
        bytes=header.size + (beside.stat().st_size if beside else 0),
        parameters=sum(prod(tensor.shape) for tensor in weights if tensor.type != PERMUTATION),
        tensors=tensors,
    )


def _describe_onnx(folder: Path) -> Artifact:
    from ..exporters.onnx.check.folder_check import check_folder
    from ..exporters.onnx.contents import QUANTISATION_KEY, model_bytes, model_facts, tensor_records

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
        quantisation=metadata.get(QUANTISATION_KEY) or _quantisation(weights, model.graph.node),
        layout="dense" if metadata.get("lowrank.layout", "dense") == "dense" else "native",
        bytes=model_bytes(folder),
        parameters=sum(packed.get(tensor.name, prod(tensor.shape)) for tensor in weights),
        tensors=tensors,
        facts=model_facts(folder),
    )


def _quantisation(weights: Sequence[TensorRecord], nodes: Iterable[Any]) -> str:
    """Of a folder that does not say it: codes of as many bits as most matmuls have, or the type of most weights."""
    bits = Counter(
        attribute.i
        for node in nodes
        if node.op_type == "MatMulNBits"
        for attribute in node.attribute
        if attribute.name == "bits"
    )
    return f"int{bits.most_common(1)[0][0]}" if bits else _main_type(weights)


def _describe_checkpoint(path: Path) -> Artifact:
    from ..converter.checkpoint.reader import CheckpointReader

    reader = CheckpointReader(path)
    tensors = tuple(_checkpoint_record(reader.dtype(name), name, reader.shape(name)) for name in reader.names)
    return Artifact(
        path=path,
        format="checkpoint",
        quantisation=_main_type(tensors),
        layout="native" if reader.ranks else "dense",
        bytes=sum(file.stat().st_size for file in path.glob("*.safetensors")),
        parameters=sum(prod(tensor.shape) for tensor in tensors if tensor.type != PERMUTATION),
        tensors=tensors,
    )


def _checkpoint_record(dtype: str, name: str, shape: tuple[int, ...]) -> TensorRecord:
    width = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I32": 4}.get(dtype, 1)
    return TensorRecord(name, shape, CHECKPOINT_TYPES.get(dtype, dtype.lower()), prod(shape) * width)


def _main_type(tensors: Iterable[TensorRecord]) -> str:
    """The storage type that most weights have."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.type] += prod(tensor.shape)
    return counts.most_common(1)[0][0] if counts else "unknown"
