"""GPTQ to the storage types of ggml: which tensors, and where their bytes are kept."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...converter.core.progress import Progress
from ...converter.families.family import Gguf
from ...converter.families.table import gguf_of
from ...converter.model.blocks import BlockSource
from ..artifact import TensorRecord
from ..chosen import ALPHA
from ..rounding import gptq_linears
from ..rounding.gptq_linears import WEIGHT, C, P, Round, U, V
from .encoding import check_range
from .names import gguf_name
from .rounding import PLAIN, Rows, round_rows

PARTS = (U, V, P, C, WEIGHT)


@contextmanager
def rounded_files(
    blocks: BlockSource,
    chunks: Sequence[Tensor],
    records: Iterable[TensorRecord],
    library: Path,
    out: Path,
    progress: Progress,
    *,
    aligned: bool,
) -> Iterator[Mapping[str, Sequence[Path]]]:
    """Round the linears of a checkpoint's blocks, see `round_linears`; their files are removed when the context ends.

    Args:
        blocks: of the checkpoint, dense or factored.
        chunks: calibration windows, (B, T) each.
        records: the tensors of the file that is made.
        library: a ggml library.
        out: the file that is made; the rounded tensors lie beside it.
        progress: receives a step per block.
        aligned: each linear makes up for what was rounded before it, as in the fit that chose the types.
    """
    types = {record.name: record.type for record in records if record.name.startswith("blk.") and len(record.shape) > 1}
    ending = f".{os.getpid()}.partial"  # removed by the next export, should this one be killed: see `replacing`
    with TemporaryDirectory(prefix=f".{out.name}.rounded-", suffix=ending, dir=out.parent) as folder:
        alpha = ALPHA if aligned else 0.0
        of = gguf_of(blocks.reader.config)
        yield round_linears(blocks, chunks, types, of, library, Path(folder), progress, alpha)


def round_linears(
    blocks: BlockSource,
    chunks: Sequence[Tensor],
    types: Mapping[str, str],
    of: Gguf,
    library: Path,
    folder: Path,
    progress: Progress,
    alpha: float = 0.0,
) -> dict[str, list[Path]]:
    """Round the linears of a model's blocks, see `exporters.rounding.gptq_linears.round_linears`.

    Args:
        blocks: the model, dense or factored.
        chunks: calibration windows, (B, T) each.
        types: GGUF name -> storage type of every tensor of the file. A factored linear whose `.weight` is among them
            is multiplied out.
        of: the model's family.
        library: a ggml library.
        folder: filled with one `.npy` per tensor; a model's worth of them need not fit into memory.
        progress: receives blocks.
        alpha: see `rounding.gptq_linears.round_linears`.

    Returns:
        GGUF name -> file of encoded rows, uint8 (m, bytes per row), in the checkpoint's order of rows; of a stack one
        per expert, in their order. Linears none of whose types has blocks are not among them.

    Raises:
        InputError: a weight does not fit its type.
    """

    def wanted(linear: str) -> dict[str, str]:
        stored = {part: gguf_name(f"{linear}.{part}", of) or "" for part in PARTS}
        found = {part: types[name] for part, name in stored.items() if name in types}
        return {} if all(type in PLAIN for type in found.values()) else found

    files: dict[str, list[Path]] = {}
    for name, rows in gptq_linears.round_linears(blocks, chunks, wanted, rounder(library), progress, alpha):
        of_tensor = files.setdefault(gguf_name(name, of) or name, [])
        of_tensor.append(folder / f"{name}.npy")
        np.save(of_tensor[-1], rows)
    return files


def rounder(library: Path) -> Round[str, NDArray[np.uint8]]:
    """Rounds to storage types with a ggml library."""

    def round(name: str, weights: Tensor, moment: Tensor, type: str) -> Rows:
        check_range(name, weights.numpy(), type)
        return round_rows(weights, moment, type, library)

    return round
