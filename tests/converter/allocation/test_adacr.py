"""adaCR: the formula, the two readings of similarity, and the target met after clamping."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_export.converter.allocation.adacr import adacr, normalize, similarity
from lowrank_export.converter.allocation.plan import LinearShape


def shapes(blocks: int) -> list[LinearShape]:
    return [LinearShape(f"{b}.{i}", b, 64, 48) for b in range(blocks) for i in range(3)]


def test_formula_where_nothing_is_clamped() -> None:
    importance = (1.2, 0.8, 1.0)
    wanted = adacr(shapes(3), importance, 0.6, 0.4)
    expected = [0.4 + i * (0.6 - 0.4) for i in importance for _ in range(3)]
    assert wanted == pytest.approx(expected, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(
    raw=st.lists(st.floats(0.001, 100), min_size=2, max_size=12),
    target=st.floats(0.05, 0.99),
    share=st.floats(0, 1),
)
def test_target_is_met_after_clamping(raw: list[float], target: float, share: float) -> None:
    of = shapes(len(raw))
    wanted = adacr(of, normalize(raw), target, share * target)
    kept = sum(w * s.parameters for w, s in zip(wanted, of, strict=True)) / sum(s.parameters for s in of)
    assert kept == pytest.approx(target, rel=1e-6)
    assert all(0 <= w <= 1 for w in wanted)


def test_blocks_that_matter_more_keep_more() -> None:
    wanted = adacr(shapes(3), normalize([3.0, 1.0, 2.0]), 0.5)[::3]
    assert wanted[0] > wanted[2] > wanted[1]


def test_readings_of_similarity() -> None:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert similarity(x, 3 * x, "cosine") == pytest.approx(1, abs=1e-6)
    assert similarity(x, 3 * x, "angular") == pytest.approx(0, abs=1e-6)
    assert similarity(x, -x, "angular") == pytest.approx(2, abs=1e-6)


def test_normalized_importance_has_mean_one() -> None:
    assert sum(normalize([1.0, 2.0, 6.0])) / 3 == pytest.approx(1)
    assert normalize([0.0, 0.0]) == (1.0, 1.0)
