"""llama.cpp's file of an importance matrix: the mean square of every input of every matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...converter.core.errors import InputError
from ...converter.storage.files import replacing
from ...converter.storage.gguf_header import StoredTensor, read_header

SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Importance:
    """What an importance matrix is made of.

    Attributes:
        squares: GGUF name -> mean square of each input of that matrix (n,) float32, of a stack (experts, n).
        tokens: that they are means over.
    """

    squares: Mapping[str, NDArray[np.float32]]
    tokens: int


def write_imatrix(
    found: Importance, out: Path, *, architecture: str, text: str, windows: int, window_length: int, force: bool
) -> None:
    """Write the file that llama-quantize takes as `--imatrix`.

    Args:
        found: what to write.
        out: the file; it appears whole or not at all.
        architecture, text, windows, window_length: said in its metadata.
        force: replace `out`.

    Raises:
        UsageError: `out` exists.
        ResourceError: no space left.
    """
    from gguf import GGUFWriter

    with replacing(out, force=force, folder=False) as partial:
        writer = GGUFWriter(partial, architecture)
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", [text])
        writer.add_uint32("imatrix.chunk_count", windows)
        writer.add_uint32("imatrix.chunk_size", window_length)
        for name in sorted(found.squares):
            squares = found.squares[name]
            writer.add_tensor(name + SUMS, squares * np.float32(found.tokens))
            counts = (1,) if squares.ndim == 1 else (len(squares), 1)
            writer.add_tensor(name + COUNTS, np.full(counts, found.tokens, dtype=np.float32))
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def read_imatrix(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read an importance matrix of this project or of llama-imatrix.

    Returns:
        GGUF name -> mean square of each input (n,) float32, of a stack (experts, n). A matrix that met no token has
        ones, as in llama-quantize.

    Raises:
        InputError: missing, damaged, not an importance matrix, or a value that none can be.
    """
    header = read_header(path)
    if header.metadata.get("general.type") != "imatrix":
        raise InputError(f"{path}: is not an importance matrix (general.type is not imatrix)")
    stored = {tensor.name: tensor for tensor in header.tensors}
    found: dict[str, NDArray[np.float32]] = {}
    for name in (name.removesuffix(SUMS) for name in stored if name.endswith(SUMS)):
        if name + COUNTS not in stored:
            raise InputError(f"{path}: {name} has sums but no counts")
        sums, counts = (_values(path, stored[name + part]) for part in (SUMS, COUNTS))
        matrices = max(1, counts.size)
        sound = np.isfinite(sums).all() and np.isfinite(counts).all() and sums.min(initial=0) >= 0
        if not counts.size or sums.size % matrices or not sound:
            raise InputError(f"{path}: {name} holds no importance of one matrix")
        rows = sums.reshape(matrices, -1)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            means = np.where(counts[:, None] > 0, rows / counts[:, None], np.float32(1))
        found[name] = means[0] if matrices == 1 else means
        if not np.isfinite(found[name]).all():
            raise InputError(f"{path}: {name} holds no importance of one matrix")
    if not found:
        raise InputError(f"{path}: holds no importance of any matrix")
    return found


def _values(path: Path, tensor: StoredTensor) -> NDArray[np.float32]:
    if tensor.type != "f32":
        raise InputError(f"{path}: {tensor.name} is stored as {tensor.type}, not f32")
    values: NDArray[np.float32] = np.fromfile(path, dtype="<f4", count=tensor.bytes // 4, offset=tensor.offset)
    return values
