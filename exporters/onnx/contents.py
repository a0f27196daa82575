"""What an exported folder holds: its tensors and its size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...converter.errors import InputError
from ..artifact import TensorRecord

if TYPE_CHECKING:
    from onnx import TensorProto

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
QUANTISATION_KEY = "lowrank.quantisation"
"""Of `metadata_props`: the type asked for."""
ENCODING_KEY = "lowrank.encoding"
"""Of `metadata_props`: how its matrices were encoded, see `types.OnnxOptions.said`; empty for floats."""

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


def tensor_records(folder: Path) -> tuple[TensorRecord, ...]:
    """Every initialiser of the model, in the graph's order. Reads no weights.

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
    return metadata.get(QUANTISATION_KEY, ""), metadata.get(ENCODING_KEY, "")


def model_bytes(folder: Path) -> int:
    """Size of the graph and its external data."""
    return sum(path.stat().st_size for name in (MODEL_FILE, DATA_FILE) if (path := Path(folder) / name).is_file())


def _record(tensor: TensorProto) -> TensorRecord:
    from onnx import TensorProto, numpy_helper

    external: dict[str, Any] = {entry.key: entry.value for entry in tensor.external_data}
    size = int(external["length"]) if "length" in external else numpy_helper.to_array(tensor).nbytes
    name = TensorProto.DataType.Name(tensor.data_type)
    return TensorRecord(tensor.name, tuple(tensor.dims), _TYPES.get(name, name.lower()), size)
