"""ASVD's cut: the published search as reference, the budget, and a linear that must be spared."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_export.converter.allocation.candidate_cut import (
    MEASURED,
    TENTHS,
    candidate_cut,
    measured_retentions,
    stable_rank_scores,
)
from lowrank_export.converter.allocation.plan import LinearShape


def shapes(count: int) -> list[LinearShape]:
    return [LinearShape(str(i), i, 32 + 16 * (i % 3), 48) for i in range(count)]


def published(linears: list[LinearShape], scores: list[list[float]], retentions: tuple[float, ...], cut: int) -> float:
    """Share kept when all from `cut` on in the list by falling score is taken, as the published code writes it."""
    flat = [(i, r, s) for i, row in enumerate(scores) for r, s in zip(retentions, row, strict=True)]
    ordered = sorted(flat, key=lambda candidate: -candidate[2])
    chosen = dict.fromkeys(range(len(linears)), 1.0)
    for i, retention, _ in ordered[cut:]:
        chosen[i] = min(chosen[i], retention)
    kept = sum(chosen[i] * linear.parameters for i, linear in enumerate(linears))
    return kept / sum(linear.parameters for linear in linears)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 8), target=st.floats(0.1, 1.0), data=st.data())
def test_the_shortest_published_cut_that_meets_the_target(count: int, target: float, data: st.DataObject) -> None:
    linears = shapes(count)
    order = data.draw(st.permutations(range(count * 9)))
    scores = [[float(order[i * 9 + k]) for k in range(9)] for i in range(count)]
    wanted = candidate_cut(linears, scores, TENTHS, target)
    kept = sum(w * s.parameters for w, s in zip(wanted, linears, strict=True)) / sum(s.parameters for s in linears)
    shares = [published(linears, scores, TENTHS, cut) for cut in range(count * 9 + 1)]
    assert kept == pytest.approx(max(share for share in shares if share <= target * (1 + 1e-9)))


def test_a_linear_that_explodes_at_every_retention_stays_dense() -> None:
    scores = [[2.0 - r for r in MEASURED] for _ in range(5)]
    scores[3] = [1e9] * len(MEASURED)
    wanted = candidate_cut(shapes(5), scores, MEASURED, 0.7)
    assert wanted[3] == 1.0
    assert all(w < 1 for i, w in enumerate(wanted) if i != 3)


def test_retentions_reach_below_the_target() -> None:
    assert measured_retentions(0.4) == MEASURED == (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert measured_retentions(0.39) == TENTHS


def test_high_stable_rank_is_compressed_first() -> None:
    scores = [stable_rank_scores(sr, TENTHS) for sr in (2.0, 10.0, 3.0)]
    wanted = candidate_cut([LinearShape(str(i), i, 48, 48) for i in range(3)], scores, TENTHS, 0.75)
    assert wanted == pytest.approx([1.0, 0.2, 1.0])
