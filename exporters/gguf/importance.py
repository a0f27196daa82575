"""Measures an importance matrix: one forward of the calibration windows through a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...converter.checkpoint.layouts import C_SUFFIX, P_SUFFIX, U_SUFFIX, V_SUFFIX
from ...converter.checkpoint.lowrank_linear import LowRankLinear
from ...converter.checkpoint.pivot_linear import PivotLinear
from ...converter.checkpoint.reader import CheckpointReader
from ...converter.core.progress import Progress
from ...converter.families.family import Gguf
from ...converter.families.table import gguf_of
from ...converter.machine.float32 import float32_products
from ...converter.model.blocks import BlockSource
from ...converter.statistics.input_moments import input_moments
from ...converter.storage.files import check_output
from ..rounding.calibrated import open_calibrated
from .imatrix import Importance, write_imatrix
from .names import gguf_name, is_stack

LABEL = "importance of every input"


def export_imatrix(
    checkpoint: Path, out: Path, *, text: str | None, device: str = "cpu", force: bool, progress: Progress
) -> Importance:
    """Measure a checkpoint's importance matrix and write it.

    Args:
        checkpoint: factored or dense.
        out: the file.
        text: that is run; the one that the checkpoint records by default.
        device: "auto", "cpu", "cuda".
        force: replace `out`.
        progress: receives blocks.

    Raises:
        UsageError, InputError, ResourceError: as `recorded_windows` and `write_imatrix` say.
    """
    check_output(out, force)
    reader = CheckpointReader(checkpoint)
    of = gguf_of(reader.config)
    blocks, chunks = open_calibrated(reader, text, device, progress)
    with float32_products(blocks.device):
        found = measure_importance(blocks, chunks, of, progress)
    windows, length = sum(map(len, chunks)), chunks[0].shape[1]
    said = text or "the text that the checkpoint records"
    write_imatrix(
        found, out, architecture=of.architecture, text=said, windows=windows, window_length=length, force=force
    )
    return found


def measure_importance(blocks: BlockSource, chunks: Sequence[Tensor], of: Gguf, progress: Progress) -> Importance:
    """The importance of the linears of a model's blocks.

    V of a factored linear meets the linear's input x: diag Sigma. U meets z = V x: diag V Sigma V^T. The linear's own
    `.weight`, which a dense layout of the file has, is there too.

    Args:
        blocks: the model, dense or factored.
        chunks: calibration windows, (B, T) each.
        of: the model's family.
        progress: receives blocks.
    """
    squares: dict[str, list[NDArray[np.float32]]] = {}
    for stop in input_moments(blocks, chunks, progress, LABEL):
        inputs = stop.moment.diagonal()
        for path in stop.group.linears:
            name, linear = blocks.family.linear_name(stop.block, path), stop.tapped.linear(path)
            found = {".weight": inputs}
            if isinstance(linear, LowRankLinear):
                found |= {V_SUFFIX: inputs, U_SUFFIX: _latent(linear.lowrank_v.weight, stop.moment)}
            elif isinstance(linear, PivotLinear):
                found |= {P_SUFFIX: inputs, C_SUFFIX: _latent(linear.lowrank_p.weight, stop.moment)}
            for suffix, square in found.items():
                squares.setdefault(gguf_name(name + suffix, of) or name, []).append(square.float().cpu().numpy())
    stacked = {name: np.stack(rows) if is_stack(name) else rows[0] for name, rows in squares.items()}
    return Importance(stacked, sum(chunk.numel() for chunk in chunks))


def _latent(v: Tensor, moment: Tensor) -> Tensor:
    """diag V Sigma V^T (r,)."""
    v = v.double()
    return ((v @ moment) * v).sum(dim=1)
