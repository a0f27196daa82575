"""Moments: equal to the sum over all tokens at once, whatever the chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_export.converter.statistics.moments import Moment, upper_gram


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 12), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 999))
def test_chunks_add_up(n: int, sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), n, generator=generator)
    y = torch.randn(sum(sizes), n, generator=generator)
    moment, cross = Moment(), Moment()
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        moment.add(a)
        cross.add_cross(a, b)
    assert moment.tokens == len(x)
    torch.testing.assert_close(moment.mean(), (x.double().T @ x.double()) / len(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cross.mean(), (x.double().T @ y.double()) / len(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_activations_are_summed_in_float32(dtype: torch.dtype) -> None:
    x = torch.full((1000, 2), 200.0, dtype=dtype)  # 4e7: beyond float16
    assert upper_gram(x).dtype == torch.float32
    assert float(upper_gram(x)[0, 0]) == 4e7


def test_float64_accumulation_does_not_stall() -> None:
    moment = Moment()
    moment.add(torch.tensor([[1e4]]))
    for _ in range(1000):
        moment.add(torch.tensor([[1.0]]))
    assert moment.total is not None and float(moment.total) == pytest.approx(1e8 + 1000, abs=0.5)


def test_nothing_added() -> None:
    with pytest.raises(ValueError, match="no tokens"):
        Moment().mean()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees_with_the_cpu() -> None:
    x = torch.randn(500, 33)
    torch.testing.assert_close(upper_gram(x.cuda()).cpu().triu(), upper_gram(x).triu(), rtol=1e-4, atol=1e-3)
