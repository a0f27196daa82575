"""What an export produced: the record every exporter returns and every report reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PUBLISHED = {"quantization": "quantisation"}
"""Field -> its key in JSON documents, where the two differ: keys stay as the first release wrote them."""


@dataclass(frozen=True)
class TensorRecord:
    """One stored tensor.

    Attributes:
        name: in the artifact.
        shape: row-major, outermost first.
        type: that it is stored in.
        bytes: of its data.
        wanted: the requested type, where a fallback is stored instead; None elsewhere.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    bytes: int
    wanted: str | None = None


@dataclass(frozen=True)
class Artifact:
    """An exported file (GGUF) or folder (ONNX).

    Attributes:
        path: the file or folder, in its final place.
        format: "gguf" or "onnx".
        quantization: the weight type or mix asked for ("f16", "q8_0", "q4_k_m"; "fp32", "int8").
        layout: "native" (two factors per linear), "dense" (factors multiplied out, or a dense source).
        bytes: size of everything the runtime must load, in bytes.
        parameters: number of stored weights (tied tensors once).
        tensors: every stored tensor.
        facts: what else the file says of itself: versions of its format, what wrote it.
    """

    path: Path
    format: str
    quantization: str
    layout: str
    bytes: int
    parameters: int
    tensors: tuple[TensorRecord, ...]
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def bits_per_weight(self) -> float:
        """Bits the file spends per stored parameter, everything included; 0 for a file without parameters."""
        return 8 * self.bytes / self.parameters if self.parameters else 0.0

    def to_json(self) -> dict[str, Any]:
        """The record as JSON-ready data."""
        return {**to_document(self), "path": str(self.path), "bits_per_weight": self.bits_per_weight}


def to_document(record: DataclassInstance) -> dict[str, Any]:
    """`asdict` of a record, under the keys of JSON documents."""
    return {PUBLISHED.get(name, name): value for name, value in asdict(record).items()}


def from_document(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record that `to_document` wrote."""
    fields = {key: name for name, key in PUBLISHED.items()}
    return {fields.get(key, key): value for key, value in data.items()}


def main_type(tensors: Iterable[TensorRecord]) -> str:
    """The storage type that most weights have."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.type] += prod(tensor.shape)
    return counts.most_common(1)[0][0] if counts else "unknown"
