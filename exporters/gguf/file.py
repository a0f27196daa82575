"""A GGUF file as such: its metadata, its tensors one after another, and what it holds once it is written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...converter.checkpoint.reader import CheckpointReader
from ...converter.core.errors import InputError
from ...converter.core.progress import Advance
from ...converter.families.family import Gguf
from ...converter.storage.gguf_header import read_header
from ..artifact import TensorRecord
from .metadata import EXPORTED_AS, Hyperparameters, add_hyperparameters
from .mixes import Quantization
from .vocabulary import Vocabulary, add_vocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter

LOWRANK_VERSIONS = {"two-factor": 1, "pivot": 2}


def open_writer(
    path: Path,
    reader: CheckpointReader,
    of: Gguf,
    hyper: Hyperparameters,
    asked: Quantization,
    vocabulary: Vocabulary,
    *,
    layout: str,
) -> GGUFWriter:
    """A writer with all metadata of a model set; `layout` is what a factored checkpoint's file says of itself."""
    from gguf import GGML_QUANT_VERSION, GGUFWriter

    writer = GGUFWriter(path, of.architecture)
    writer.add_type("model")
    writer.add_name(reader.path.resolve().name)
    writer.add_quantized_by(f"{EXPORTED_AS}{asked}")
    writer.add_file_type(asked.file_type)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    add_hyperparameters(writer, hyper)
    if reader.lowrank:
        if layout in LOWRANK_VERSIONS:  # what makes an unpatched library's refusal explainable
            writer.add_uint32("lowrank.version", LOWRANK_VERSIONS[layout])
        writer.add_string("lowrank.layout", layout)
        writer.add_float32("lowrank.retention", float(reader.lowrank.get("retention", 1.0)))
        writer.add_string("lowrank.method", str(reader.lowrank.get("method", "")))
        writer.add_string("lowrank.recipe", reader.recipe_text)
    add_vocabulary(writer, vocabulary)
    return writer


def write_tensors(
    writer: GGUFWriter, records: Sequence[TensorRecord], encoded: Iterable[NDArray[np.generic]], advance: Advance
) -> None:
    """Write header, metadata and every tensor, one in memory at a time, down to the disk.

    Args:
        writer: with all metadata set.
        records: what the file holds.
        encoded: the bytes of each, in that order.
        advance: receives each.
    """
    from gguf import GGMLQuantizationType

    for record in records:
        raw_type = GGMLQuantizationType[record.type.upper()]
        writer.add_tensor_info(record.name, record.shape, np.dtype(np.float32), record.bytes, raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    for data in encoded:
        # Not write_tensor_data: numpy's tofile loses the reason of a failed write.
        writer.write_padding(file, file.tell())
        file.write(data.reshape(-1).view(np.uint8).data)
        writer.write_padding(file, data.nbytes)
        advance(1)
    file.flush()
    os.fsync(file.fileno())


def verify_file(path: Path, records: tuple[TensorRecord, ...]) -> None:
    """Read a file back: every tensor's name, shape, type and extent must be what was meant.

    Raises:
        InputError: something differs; names the first tensor.
    """
    found = {tensor.name: tensor for tensor in read_header(path).tensors}
    for record in records:
        tensor = found.pop(record.name, None)
        if tensor is None:
            raise InputError(f"{path}: read-back: tensor {record.name!r} is missing")
        if (tensor.shape, tensor.type, tensor.bytes) != (record.shape, record.type, record.bytes):
            raise InputError(f"{path}: read-back: {record.name!r} is {tensor.shape} {tensor.type}, not {record}")
    if found:
        raise InputError(f"{path}: read-back: unexpected tensor {next(iter(found))!r}")
