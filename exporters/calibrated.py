"""A checkpoint and the text it was calibrated on, ready to be run block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from ..converter.checkpoint.folder import CheckpointReader
from ..converter.model.architectures import family_of
from ..converter.model.blocks import BlockSource
from ..converter.statistics.recorded_windows import recorded_windows
from ..converter.statistics.window_chunks import CHUNK_TOKENS


def open_calibrated(reader: CheckpointReader, text: str | None) -> tuple[BlockSource, list[Tensor]]:
    """The model in float32 on the CPU, and its calibration windows in chunks, (B, T) each.

    Args:
        reader: a checkpoint, dense or factored.
        text: instead of the recorded one.

    Raises:
        UsageError, InputError: as `recorded_windows` says.
    """
    windows = torch.from_numpy(recorded_windows(reader.path, text))
    family, device = family_of(reader.config, str(reader.path)), torch.device("cpu")
    blocks = BlockSource(reader, family, device, torch.float32)
    windows = windows[:, : blocks.window_limit]  # of a dense model nobody has said how long windows should be
    size = max(1, CHUNK_TOKENS // windows.shape[1])
    return blocks, [windows[start : start + size] for start in range(0, len(windows), size)]
