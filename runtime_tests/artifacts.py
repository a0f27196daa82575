"""What a file or folder holds, for artifacts that come without the record their export returned."""

from __future__ import annotations

from math import prod
from pathlib import Path

from ..converter.core.errors import InputError
from ..converter.model.places import is_later_part
from ..exporters.artifact import Artifact, TensorRecord, main_type
from ..exporters.registry import TARGETS
from .backends.formats import artifact_format

CHECKPOINT_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f64", "I32": "i32"}
PERMUTATION = "i32"  # the order of rows of the pivot layout, no weights


def find_artifacts(path: Path) -> list[Path]:
    """An artifact, or the GGUF files, of those in parts the first, and ONNX folders that lie in a folder, by name.

    Raises:
        InputError: missing, or neither.
    """
    try:
        artifact_format(path)
    except InputError:
        inside = [] if not path.is_dir() else sorted(path.iterdir())
        whole = [one for one in inside if not is_later_part(one)]
        found = [one for one in whole if any(target.recognizes(one) for target in TARGETS.values())]
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
    return TARGETS[kind].describe(artifact) if kind in TARGETS else _describe_checkpoint(artifact)


def _describe_checkpoint(path: Path) -> Artifact:
    from ..converter.checkpoint.reader import CheckpointReader

    reader = CheckpointReader(path)
    tensors = tuple(_checkpoint_record(reader.dtype(name), name, reader.shape(name)) for name in reader.names)
    return Artifact(
        path=path,
        format="checkpoint",
        quantization=main_type(tensors),
        layout="native" if reader.ranks else "dense",
        bytes=sum(file.stat().st_size for file in path.glob("*.safetensors")),
        parameters=sum(prod(tensor.shape) for tensor in tensors if tensor.type != PERMUTATION)
        + sum(map(prod, reader.beside.values())),
        tensors=tensors,
    )


def _checkpoint_record(dtype: str, name: str, shape: tuple[int, ...]) -> TensorRecord:
    width = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I32": 4}.get(dtype, 1)
    return TensorRecord(name, shape, CHECKPOINT_TYPES.get(dtype, dtype.lower()), prod(shape) * width)
