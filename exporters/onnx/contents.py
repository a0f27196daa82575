"""What an exported folder holds: its tensors and its size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...converter.core.errors import InputError
from ..artifact import TensorRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx import TensorProto

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
QUANTIZATION_KEY = "lowrank.quantisation"
"""Of `metadata_props`: the type asked for."""
ENCODING_KEY = "lowrank.encoding"
"""Of `metadata_props`: how its matrices were encoded, see `types.OnnxOptions.recorded`; empty for floats."""

INLINE_BYTES = 1024
"""Smaller tensors stay in model.onnx, where shape inference and viewers see them; all others lie in the data file."""

_PREFIX = "lowrank."
_TYPES = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}  # others: ONNX's own name in lower case


def model_file(folder: Path) -> Path:
    """Path of the graph inside an exported folder.

    Raises:
        InputError: the folder or the graph is missing.
    """
    path = Path(folder) / MODEL_FILE
    if not path.is_file():
        raise InputError(f"{folder}: no {MODEL_FILE} here; give the folder an ONNX export wrote")
    return path


def save_model(model: Any, folder: Path, metadata: Mapping[str, str]) -> None:
    """Write an `onnx_ir.Model`: the graph to model.onnx, its weights beside it, so that no size is too large.

    `metadata_props` get `metadata`, and the versions of the format that the file is written in.

    Raises:
        OSError: the disk is full or not writable.
    """
    import onnx_ir as ir

    model.producer_name, model.producer_version = "lowrank-export", metadata["lowrank.producer"]
    model.metadata_props.update(metadata)
    model.metadata_props["lowrank.ir_version"] = str(model.ir_version)
    for domain, opset in sorted(model.opset_imports.items()):
        model.metadata_props[f"lowrank.opset.{domain or 'ai.onnx'}"] = str(opset)
    ir.save(model, folder / MODEL_FILE, external_data=DATA_FILE, size_threshold_bytes=INLINE_BYTES)


def model_facts(folder: Path) -> dict[str, str]:
    """What a model file says of its making: opsets, IR version, exporter, method; without the recipe's text.

    The versions are the file's own, not what its metadata claims.

    Raises:
        InputError: no model in this folder.
    """
    import onnx

    model = onnx.load(str(model_file(folder)), load_external_data=False)
    said = {entry.key: entry.value for entry in model.metadata_props if entry.key.startswith(_PREFIX)}
    facts = {key.removeprefix(_PREFIX): value for key, value in said.items() if key != "lowrank.recipe" and value}
    facts["ir_version"] = str(model.ir_version)
    facts.update({f"opset.{item.domain or 'ai.onnx'}": str(item.version) for item in model.opset_import})
    return facts


def tensor_records(folder: Path) -> tuple[TensorRecord, ...]:
    """Every initializer of the model, in the graph's order. Reads no weights.

    Raises:
        InputError: no model in this folder.
    """
    import onnx

    graph = onnx.load(str(model_file(folder)), load_external_data=False).graph
    return tuple(_record(tensor) for tensor in graph.initializer)


def written_as(folder: Path) -> tuple[str, str]:
    """Type and encoding that an exported folder says it was written in; empty where it does not.

    Raises:
        InputError: no model in this folder.
    """
    import onnx

    model = onnx.load(str(model_file(folder)), load_external_data=False)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return metadata.get(QUANTIZATION_KEY, ""), metadata.get(ENCODING_KEY, "")


def model_bytes(folder: Path) -> int:
    """Size of the graph and its external data."""
    return sum(path.stat().st_size for name in (MODEL_FILE, DATA_FILE) if (path := Path(folder) / name).is_file())


def _record(tensor: TensorProto) -> TensorRecord:
    from onnx import TensorProto, numpy_helper

    external: dict[str, Any] = {entry.key: entry.value for entry in tensor.external_data}
    size = int(external["length"]) if "length" in external else numpy_helper.to_array(tensor).nbytes
    name = TensorProto.DataType.Name(tensor.data_type)
    return TensorRecord(tensor.name, tuple(tensor.dims), _TYPES.get(name, name.lower()), size)
