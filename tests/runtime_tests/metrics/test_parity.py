"""Divergence against the obvious computation in torch, and its properties."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from lowrank_export.converter.core.errors import InputError
from lowrank_export.runtime_tests.metrics.parity import Parity, divergence, parity

LOGIT = st.floats(-80, 80, width=32)
PAIR = st.integers(1, 20).flatmap(
    lambda rows: st.tuples(arrays(np.float32, (rows, 7), elements=LOGIT), arrays(np.float32, (rows, 7), elements=LOGIT))
)


def _targets(rows: int) -> NDArray[np.int32]:
    return (np.arange(rows) % 7).astype(np.int32)


def _random(rows: int, seed: int, scale: float = 4.0) -> NDArray[np.float32]:
    return (scale * np.random.default_rng(seed).standard_normal((rows, 131))).astype(np.float32)


def test_equals_torch() -> None:
    reference, candidate = _random(21, 0), _random(21, 1)
    p = torch.from_numpy(reference).double().log_softmax(-1)
    q = torch.from_numpy(candidate).double().log_softmax(-1)
    kld = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    top = p.argmax(-1)
    targets = _targets(21)
    change = (q.exp() - p.exp()).gather(-1, torch.from_numpy(targets).long()[:, None])[:, 0]
    fives = zip(p.topk(5).indices.tolist(), q.topk(5).indices.tolist(), strict=True)
    found = divergence(reference, candidate, targets)
    assert found.top5.tolist() == [len(set(ours) & set(theirs)) / 5 for ours, theirs in fives]
    np.testing.assert_allclose(found.kld, kld.numpy(), rtol=1e-11)
    np.testing.assert_array_equal(found.same_top, (top == q.argmax(-1)).numpy())
    np.testing.assert_allclose(found.change, change.numpy(), atol=1e-12)


def test_resolves_differences_below_float32() -> None:
    reference = _random(64, 2)
    candidate = reference + (1e-4 * np.random.default_rng(3).standard_normal(reference.shape)).astype(np.float32)
    p = torch.from_numpy(reference).double().log_softmax(-1)
    q = torch.from_numpy(candidate).double().log_softmax(-1)
    expected = (p.exp() * (p - q)).sum(-1).mean()
    assert 0 < float(expected) < 1e-7
    assert parity([divergence(reference, candidate, _targets(64))]).mean_kld == pytest.approx(float(expected), rel=1e-3)


@given(pair=PAIR)
@settings(max_examples=60, deadline=None)
def test_never_negative_and_bounded(pair: tuple[NDArray[np.float32], NDArray[np.float32]]) -> None:
    found = divergence(*pair, _targets(len(pair[0])))
    assert (found.kld >= 0).all() and np.isfinite(found.kld).all()
    assert (np.abs(found.change) <= 1).all()


@given(pair=PAIR, shift=st.floats(-50, 50, width=32))
@settings(max_examples=60, deadline=None)
def test_zero_iff_the_same_distribution(pair: tuple[NDArray[np.float32], NDArray[np.float32]], shift: float) -> None:
    reference, other = pair
    same = parity([divergence(reference, reference, _targets(len(reference)))])
    assert same.max_kld == 0 and same.same_top == 1 and same.top5 == 1 and same.max_change == 0
    shifted = (reference.astype(np.float64) + shift).astype(np.float32)
    assert divergence(reference, shifted, _targets(len(reference))).kld.max() < 1e-9
    p = np.exp(reference - reference.max(-1, keepdims=True)).astype(np.float64)
    q = np.exp(other - other.max(-1, keepdims=True)).astype(np.float64)
    distance = np.abs(p / p.sum(-1, keepdims=True) - q / q.sum(-1, keepdims=True)).sum(-1)
    kld = divergence(reference, other, _targets(len(reference))).kld
    assert (kld >= distance**2 / 2 - 1e-6).all()  # Pinsker: distributions that differ have KL > 0


def test_summary_over_unequal_windows_counts_tokens() -> None:
    parts = [(3, 4), (20, 5)]
    windows = [divergence(_random(rows, seed), _random(rows, seed + 100), _targets(rows)) for rows, seed in parts]
    whole = np.concatenate([window.kld for window in windows])
    found = parity(windows)
    assert found.tokens == 23
    assert found.mean_kld == pytest.approx(whole.mean())
    assert found.median_kld == pytest.approx(np.median(whole))
    assert found.p99_kld == pytest.approx(np.quantile(whole, 0.99))
    assert found.max_kld == whole.max()
    assert found.kld_error == pytest.approx(whole.std(ddof=1) / np.sqrt(23))
    change = np.concatenate([window.change for window in windows])
    assert found.mean_change == pytest.approx(change.mean()) and found.max_change == np.abs(change).max()
    assert found.rms_change == pytest.approx(np.sqrt(np.mean(change**2)))


def test_curve_counts_every_token_at_its_place() -> None:
    window = divergence(_random(40, 0), _random(40, 1), _targets(40))
    found = parity([window, window], first=[0, 8]).by_position
    assert sum(part.tokens for part in found) == 80 and len(found) == 16
    seen = np.concatenate([np.arange(40) + 1, np.arange(40) + 9])
    kld = np.tile(window.kld, 2)
    assert found[0].position == seen[seen <= 3].mean() and found[0].mean_kld == pytest.approx(kld[seen <= 3].mean())
    assert [part.position for part in found] == sorted(part.position for part in found)
    assert Parity.from_json(json.loads(json.dumps(asdict(parity([window]))))) == parity([window])


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match="shape"):
        divergence(_random(3, 0), _random(4, 0), _targets(3))
