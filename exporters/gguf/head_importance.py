"""The importance of the head's columns for rounding that runs a text: the mean square of what the head multiplies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...converter.core.progress import Progress
from ...converter.distributed.workers import ALONE
from ...converter.machine.float32 import float32_products
from ...converter.model.activations import in_memory
from ...converter.model.blocks import BlockSource
from ...converter.statistics.last_hidden import last_hidden_states

WINDOWS = 4  # means over a thousand tokens hardly change


def head_importance(blocks: BlockSource, chunks: Sequence[Tensor], progress: Progress) -> NDArray[np.float32]:
    """Mean square of each input (d,) of the output head, or of the embedding that serves as one.

    Args:
        blocks: the model; its blocks run one at a time.
        chunks: calibration windows, (B, T) each, of which the first are run.
        progress: receives a step per block.
    """
    windows = torch.cat(list(chunks))[:WINDOWS]
    with float32_products(blocks.device):
        states = last_hidden_states(blocks, windows, in_memory, ALONE, progress)
        total = sum((state.double().square().sum(dim=(0, 1)) for state in states), torch.zeros(()))
    return (total / windows.numel()).float().cpu().numpy()
