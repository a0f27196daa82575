"""NaN and Inf are found wherever they are."""

from __future__ import annotations

import pytest
import torch

from lowrank_export.converter.factors.finite import ROWS, all_finite


@pytest.mark.parametrize("shape", [(), (3,), (ROWS + 1,), (2 * ROWS, 2), (0, 4)])
def test_finite(shape: tuple[int, ...]) -> None:
    assert all_finite(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, ROWS - 1, ROWS, 2 * ROWS])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_not_finite(value: float, place: int, dtype: torch.dtype) -> None:
    tensor = torch.zeros(2 * ROWS + 1, 2, dtype=dtype)
    tensor[place, 1] = value
    assert not all_finite(tensor)


def test_a_number_alone() -> None:
    assert not all_finite(torch.tensor(float("nan")))
