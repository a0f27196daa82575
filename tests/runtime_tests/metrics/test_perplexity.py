"""Token losses and perplexity against torch in float64 and llama.cpp's formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lowrank_export.runtime_tests.metrics.perplexity import log_normalizer, perplexity, token_losses


@pytest.mark.parametrize("length", [2, 8, 9, 30])
def test_losses_equal_torch_cross_entropy(length: int) -> None:
    rng = np.random.default_rng(length)
    logits = (20 * rng.standard_normal((length, 97)) + 300).astype(np.float32)  # a large offset must not overflow
    tokens = rng.integers(0, 97, length).astype(np.int32)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits[:-1]).double(), torch.from_numpy(tokens[1:]).long(), reduction="none"
    )
    np.testing.assert_allclose(token_losses(logits[:-1], tokens[1:]), expected.numpy(), rtol=1e-12, atol=1e-12)


def test_uniform_logits_give_the_vocabulary() -> None:
    losses = token_losses(np.zeros((10, 320), np.float32), np.arange(10, dtype=np.int32))
    found = perplexity(losses)
    assert found.value == pytest.approx(320)
    assert found.standard_error == pytest.approx(0, abs=1e-6)
    assert found.tokens == 10


def test_standard_error_is_llama_cpps() -> None:
    losses = np.random.default_rng(0).gamma(2.0, 1.5, (4, 50))
    count, nll, nll2 = losses.size, losses.sum(), (losses**2).sum()
    nll, nll2 = nll / count, nll2 / count  # as tools/perplexity/perplexity.cpp computes it
    variance = nll2 - nll**2
    found = perplexity(losses)
    assert found.value == pytest.approx(math.exp(nll))
    assert found.standard_error == pytest.approx(math.exp(nll) * math.sqrt(variance / (count - 1)))


def test_hopeless_losses_do_not_overflow() -> None:
    assert perplexity(np.full(5, 1e4)).value == math.inf
    assert math.isnan(perplexity(np.ones(1)).standard_error)


def test_log_normalizer_of_extreme_rows() -> None:
    rows = np.array([[1e4, 0.0], [-1e4, -1e4]])
    np.testing.assert_allclose(log_normalizer(rows), [1e4, -1e4 + math.log(2)])
