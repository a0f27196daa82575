"""Checkpoint -> the memory that its largest tensor takes while it is written as GGUF: arithmetic, before any work."""

from __future__ import annotations

from math import prod
from pathlib import Path

from ...converter.checkpoint.reader import CheckpointReader
from ...converter.families.table import gguf_of
from ...converter.storage.safetensors_header import WIDTHS
from .metadata import read_hyperparameters
from .mixes import Quantization
from .mixes import records as tensor_records
from .names import rotary_heads
from .tensors import PlannedTensor, plan_tensors

FLOAT = 4


def largest_tensor(checkpoint: Path, asked: Quantization, layout: str) -> int:
    """Bytes of the tensor that takes most: as stored, in float32, multiplied out, rows in another order, encoded."""
    reader = CheckpointReader(checkpoint)
    of, hyper = gguf_of(reader.config), read_hyperparameters(reader.config)
    native = layout == "native" and bool(reader.ranks)
    sources = plan_tensors(reader, of, hyper, native=native)
    records = tensor_records({source.name: source.shape for source in sources}, asked)
    found = [0]
    for source, record in zip(sources, records, strict=True):
        reordered = rotary_heads(source.name, of, hyper.heads, hyper.key_value_heads) is not None
        inside = max(_matrix(reader, matrix, reordered=reordered) for matrix in source.matrices)
        found.append(inside + (3 if source.experts else 2) * record.bytes)
    return max(found)


def _matrix(reader: CheckpointReader, source: PlannedTensor, *, reordered: bool) -> int:
    """Bytes of one matrix: its parts as stored and in float32, their product, and rows in another order."""
    read = 0
    for part in source.parts:
        width = WIDTHS[reader.dtype(part)]
        read += prod(reader.shape(part)) * (width if width == FLOAT else width + FLOAT)
    return read + (int(len(source.parts) > 1) + int(reordered)) * FLOAT * prod(source.shape)
