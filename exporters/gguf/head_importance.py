"""The importance of the head's columns for rounding that runs a text: the mean square of what the head multiplies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ...converter.checkpoint.reader import CheckpointReader
from ...converter.core.progress import Progress
from ...converter.distributed.workers import ALONE
from ...converter.machine.float32 import float32_products
from ...converter.model.activations import in_memory
from ...converter.statistics.last_hidden import last_hidden_states
from ..artifact import TensorRecord
from ..rounding.calibrated import open_calibrated
from .mixes import EMBEDDING, HEAD
from .rounding import PLAIN
from .rounding_choice import Rounding
from .types import INTEGERS

WINDOWS = 4  # means over a thousand tokens hardly change


def head_importance(
    reader: CheckpointReader, records: Sequence[TensorRecord], rounding: Rounding, progress: Progress
) -> Mapping[str, NDArray[np.float32]]:
    """Tensor name -> mean square of each input (d,) of the output head, or of the embedding that serves as one.

    Args:
        reader: of the checkpoint that is exported; its blocks run one at a time.
        records: tensors of the file.
        rounding: nothing is measured where it is plain.
        progress: receives a step per block.

    Returns:
        Nothing where the head is stored in floats, or in factors.

    Raises:
        UsageError, InputError, ResourceError: as `open_calibrated` says.
    """
    types = {record.name: record.type for record in records}
    factored = any(name.startswith(f"{HEAD}.lowrank") for name in types)
    name = f"{HEAD}.weight" if f"{HEAD}.weight" in types else f"{EMBEDDING}.weight"
    if rounding.how == "plain" or factored or types.get(name, INTEGERS) in (*PLAIN, INTEGERS):
        return {}
    blocks, chunks = open_calibrated(reader, rounding.calibration, rounding.device, progress)
    windows = torch.cat(list(chunks))[:WINDOWS]
    with float32_products(blocks.device):
        states = last_hidden_states(blocks, windows, in_memory, ALONE, progress)
        total = sum((state.double().square().sum(dim=(0, 1)) for state in states), torch.zeros(()))
    return {name: (total / windows.numel()).float().cpu().numpy()}
