"""A GGUF file without the record that its export returned: what its header says."""

from __future__ import annotations

from math import prod
from pathlib import Path

from ...converter.core.errors import InputError
from ...converter.model.gguf_parts import read_whole
from ..artifact import Artifact, TensorRecord, main_type
from .adapter_files import LAYOUT, RESIDUAL_KEY, find_adapter, read_records
from .consistency import check_consistency
from .mixes import exported_as, records
from .types import INTEGERS, TYPES


def describe_gguf(path: Path) -> Artifact:
    """The record of a file, of one in parts that of the whole. No weight is read.

    Raises:
        InputError: damaged, or a part or its adapter is missing.
    """
    header, residual = read_whole(path), None
    try:
        check_consistency(header)
    except InputError as error:
        raise InputError(f"{path}: damaged GGUF file: {error}") from None
    asked = exported_as(header)
    if header.metadata.get("lowrank.layout") == LAYOUT:
        tensors, layout = read_records(path, header, asked), LAYOUT
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
        quantization=residual if residual in TYPES else asked.mix if asked else main_type(tensors),
        layout=layout,
        bytes=header.size + (beside.stat().st_size if beside else 0),
        parameters=sum(prod(tensor.shape) for tensor in weights if tensor.type != INTEGERS),
        tensors=tensors,
    )
