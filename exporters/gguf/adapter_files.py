"""A base file and its adapter: how each finds the other, and what the two hold together.

The base alone is no model. It names its adapter and the adapter's hash, so that this project's own tools find it and
never take another; llama.cpp itself takes it as `--lora`.
"""

from __future__ import annotations

from pathlib import Path

from ...converter.checkpoint.layouts import U_SUFFIX, V_SUFFIX
from ...converter.core.errors import InputError
from ...converter.storage.files import file_sha256
from ...converter.storage.gguf_header import Header, read_header
from ..artifact import TensorRecord
from .mixes import Quantization
from .mixes import records as tensor_records
from .types import TYPES

LAYOUT = "adapter"
SUFFIX = ".lora.gguf"
A_SUFFIX, B_SUFFIX = ".weight.lora_a", ".weight.lora_b"  # V and U under the names that llama.cpp gives them
ADAPTER_KEY, HASH_KEY, RESIDUAL_KEY = "lowrank.adapter", "lowrank.adapter.sha256", "lowrank.residual"


def adapter_path(base: Path) -> Path:
    """The adapter's file: "model.gguf" has "model.lora.gguf" beside it."""
    return base.with_name(base.name.removesuffix(".gguf") + SUFFIX)


def find_adapter(path: Path, header: Header) -> Path | None:
    """The adapter that a base file names; None for a file that needs none.

    Args:
        path: of the file.
        header: its own.

    Raises:
        InputError: it is not there, or not the one the base was made with.
    """
    name = header.metadata.get(ADAPTER_KEY)
    if name is None:
        return None
    if not isinstance(name, str) or Path(name).name != name or not name:
        raise InputError(f"{path}: damaged GGUF file: {ADAPTER_KEY} is {name!r}, no file name")
    found = path.with_name(name)
    if not found.is_file():
        raise InputError(f"{path}: is a base without meaning of its own; its adapter {name} is not beside it")
    if file_sha256(found) != header.metadata.get(HASH_KEY):
        raise InputError(f"{path}: was made with another {name} than the one beside it; export both again")
    return found


def read_records(path: Path, header: Header, asked: Quantization | None) -> tuple[TensorRecord, ...]:
    """What a base file and its adapter hold, as `export_adapter` returns it; of an adapter alone, its tensors.

    Args:
        path, header: of the file.
        asked: what it was exported in, where it says so.

    Raises:
        InputError: as `find_adapter` says, or a damaged adapter.
    """
    beside = find_adapter(path, header)
    tensors = (*header.tensors, *(read_header(beside).tensors if beside else ()))
    wanted: dict[str, str | None] = {}
    if asked is not None:
        shapes = {factor_name(tensor.name): tensor.shape for tensor in tensors}
        wanted = {adapter_name(record.name): record.wanted for record in tensor_records(shapes, asked)}
    residual = header.metadata.get(RESIDUAL_KEY)
    for tensor in tensors:
        if tensor.name.endswith(A_SUFFIX):
            wanted[tensor.name.removesuffix(A_SUFFIX) + ".weight"] = residual if residual in TYPES else None
    return tuple(
        TensorRecord(t.name, t.shape, t.type, t.bytes, None if wanted.get(t.name) == t.type else wanted.get(t.name))
        for t in tensors
    )


def adapter_name(factor: str) -> str:
    """Of U or V in the adapter."""
    return factor.replace(U_SUFFIX, B_SUFFIX).replace(V_SUFFIX, A_SUFFIX)


def factor_name(stored: str) -> str:
    return stored.replace(B_SUFFIX, U_SUFFIX).replace(A_SUFFIX, V_SUFFIX)
