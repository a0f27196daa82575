"""GGUF files that no exporter wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter


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


def split(source: Path, folder: Path, cuts: Sequence[int], name: str = "m", **said: Any) -> list[Path]:
    """A file in parts, written by gguf-py as gguf-split cuts it."""
    reader = GGUFReader(source)
    count, places = len(cuts) + 1, [0, *cuts, len(reader.tensors)]
    made = []
    for number in range(count):
        made.append(folder / f"{name}-{number + 1:05}-of-{count:05}.gguf")
        architecture = reader.fields["general.architecture"].contents()
        writer = GGUFWriter(made[-1], architecture)
        if number:
            writer.kv_data[0].clear()  # gguf-split writes the metadata into the first part alone
        for key, field in reader.fields.items():
            if number == 0 and not key.startswith("GGUF.") and key != "general.architecture":
                kind = field.types[0]
                inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
                writer.add_key_value(key, field.contents(), kind, inner)
        writer.add_uint16("split.no", said.get("no", number))
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", said.get("tensors", len(reader.tensors)))
        for tensor in reader.tensors[places[number] : places[number + 1]]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return made
