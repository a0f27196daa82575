"""GGUF files that no exporter wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter


def imatrix(path: Path, tensors: dict[str, np.ndarray], kind: str | None = "imatrix") -> Path:
    """A file of these tensors that calls itself an importance matrix, or something else."""
    writer = GGUFWriter(path, "llama")
    if kind is not None:
        writer.add_type(kind)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
