"""The windows of one process are those of all, divided."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lowrank_export.converter.core.recipe import Recipe
from lowrank_export.converter.distributed.workers import Workers
from lowrank_export.converter.statistics.calibration import Calibration
from lowrank_export.converter.statistics.window_chunks import window_chunks


@pytest.mark.parametrize("reduction", ["moments", "stack-of-batch"])
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_processes_run_the_windows_of_one(reduction: str, count: int) -> None:
    windows = np.arange(7 * 16, dtype=np.int32).reshape(7, 16)
    recipe = Recipe(model="m", calibration_reduction=reduction, buckets=3)
    calibration = Calibration(windows, windows[:2], "text", 0)
    whole = window_chunks(recipe, calibration)
    shares = [window_chunks(recipe, calibration, Workers(index, count)) for index in range(count)]
    torch.testing.assert_close(torch.cat([chunk for share in shares for chunk in share]), torch.cat(whole))
    if reduction == "stack-of-batch":  # averages of a bucket's windows: none is cut
        assert [len(chunk) for share in shares for chunk in share] == [3, 3, 1]
