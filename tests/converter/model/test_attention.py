"""Blocked attention computes what PyTorch's does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from lowrank_export.converter.model.attention import (
    QUERIES,
    attention_function,
    capped_attention_function,
    causal_attention,
)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2 * QUERIES + 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 9))
def test_as_pytorchs(length: int, groups: int, share: int, seed: int) -> None:
    torch.manual_seed(seed)
    query = torch.randn(2, groups * share, length, 8).bfloat16()
    key, value = (torch.randn(2, groups, length, 8).bfloat16() for _ in range(2))
    exact = scaled_dot_product_attention(
        query.double(), key.double(), value.double(), is_causal=True, scale=0.5, enable_gqa=True
    )
    found = causal_attention(query, key, value, 0.5)
    assert found.shape == (2, length, groups * share, 8) and found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), exact.transpose(1, 2), rtol=0.03, atol=0.03)


def test_gradients_flow() -> None:
    tensors = [torch.randn(1, 2, QUERIES + 9, 4).bfloat16().requires_grad_(True) for _ in range(3)]
    same = [t.detach().double().requires_grad_(True) for t in tensors]
    causal_attention(*tensors, 0.5).square().sum().backward()
    scaled_dot_product_attention(*same, is_causal=True, scale=0.5).square().sum().backward()
    for found, exact in zip(tensors, same, strict=True):
        assert found.grad is not None and exact.grad is not None
        assert float((found.grad.double() - exact.grad).norm() / exact.grad.norm()) < 0.02


@pytest.mark.parametrize("options", [{"is_causal": False}, {"attention_mask": torch.zeros(1, 1, 5, 5)}])
def test_what_is_not_causal_goes_to_pytorch(options: dict[str, object]) -> None:
    query, key, value = (torch.randn(1, 2, 5, 4) for _ in range(3))
    module = torch.nn.Module()
    mask = options.pop("attention_mask", None)
    found, _ = attention_function(module, query, key, value, mask, scaling=0.5, **options)  # type: ignore[arg-type]
    exact = scaled_dot_product_attention(query, key, value, scale=0.5)
    torch.testing.assert_close(found, exact.transpose(1, 2))


@pytest.mark.parametrize("window", [None, 40])
def test_a_soft_cap_on_scores(window: int | None) -> None:
    length, cap = QUERIES + 9, 1.5
    query, key, value = torch.randn(2, 4, length, 8), torch.randn(2, 2, length, 8), torch.randn(2, 2, length, 8)
    ago = torch.arange(length)[:, None] - torch.arange(length)
    seen = (ago >= 0) & (ago < (window or length))
    mask = None if window is None else seen[None, None]
    found, _ = capped_attention_function(torch.nn.Module(), query, key, value, mask, scaling=0.5, softcap=cap)
    scores = query @ key.repeat_interleave(2, 1).transpose(-1, -2) * 0.5
    scores = (cap * torch.tanh(scores / cap)).masked_fill(~seen, float("-inf"))
    exact = scores.softmax(-1) @ value.repeat_interleave(2, 1)
    torch.testing.assert_close(found, exact.transpose(1, 2), rtol=1e-4, atol=1e-5)
