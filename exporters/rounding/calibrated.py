"""A checkpoint and the text it was calibrated on, ready to be run block by block."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...converter.checkpoint.reader import CheckpointReader
from ...converter.core.progress import Progress
from ...converter.families.table import family_of
from ...converter.machine.device import pick_device
from ...converter.model.blocks import BlockSource
from ...converter.statistics.recorded_windows import recorded_windows
from ...converter.statistics.sampling import Sampler
from ...converter.statistics.window_chunks import CHUNK_TOKENS


def check_calibrated(reader: CheckpointReader, text: str | None) -> None:
    """Refuse what `open_calibrated` would, without sampling anything.

    Raises:
        UsageError, InputError: as `recorded_windows` says.
    """
    family_of(reader.config, str(reader.path))
    sample = None if reader.ranks else lambda count, length, seed: np.zeros((count, length), np.int32)
    recorded_windows(reader.path, text, int(reader.config["vocab_size"]), sample)


def open_calibrated(
    reader: CheckpointReader, text: str | None, device: str, progress: Progress
) -> tuple[BlockSource, list[Tensor]]:
    """The model in float32 on a device, and its calibration windows in chunks, (B, T) each.

    Args:
        reader: a checkpoint, dense or factored.
        text: instead of the recorded one.
        device: "auto", "cpu", "cuda".
        progress: receives the sampling of a dense model's own windows.

    Raises:
        UsageError, InputError: as `recorded_windows` says.
        UsageError, ResourceError: as `pick_device` says.
    """
    where = pick_device(device)
    sample = None if reader.ranks else Sampler(reader.path, str(where), torch.float32, progress)
    windows = torch.from_numpy(recorded_windows(reader.path, text, int(reader.config["vocab_size"]), sample))
    blocks = BlockSource(reader, family_of(reader.config, str(reader.path)), where, torch.float32)
    windows = windows[:, : blocks.window_limit]  # of a dense model nobody has said how long windows should be
    size = max(1, CHUNK_TOKENS // windows.shape[1])
    return blocks, [windows[start : start + size] for start in range(0, len(windows), size)]
