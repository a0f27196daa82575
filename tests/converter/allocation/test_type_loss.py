"""SVD-LLM V2's allocation: the group mean is the target, and order follows the loss."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_export.converter.allocation.plan import LinearShape
from lowrank_export.converter.allocation.type_loss import type_loss


def shapes(count: int) -> list[LinearShape]:
    return [LinearShape(str(i), i, 64, 48) for i in range(count)]


@settings(max_examples=80, deadline=None)
@given(
    losses=st.lists(st.floats(0, 1e9), min_size=1, max_size=12), types=st.integers(1, 3), target=st.floats(0.01, 1.0)
)
def test_the_mean_over_a_type_is_the_target(losses: list[float], types: int, target: float) -> None:
    kinds = [str(i % types) for i in range(len(losses))]
    wanted = type_loss(shapes(len(losses)), kinds, losses, target)
    for kind in set(kinds):
        members = [w for w, k in zip(wanted, kinds, strict=True) if k == kind]
        assert sum(members) / len(members) == pytest.approx(target, abs=1e-9)
    assert all(-1e-9 <= w <= 1 + 1e-9 for w in wanted)


def test_formula_where_nothing_is_cut() -> None:
    losses = [100.0, 1000.0, 1e6]
    scores = [1 / math.log(loss) for loss in losses]
    wanted = type_loss(shapes(3), ["q"] * 3, losses, 0.6)
    assert wanted == pytest.approx([1 - 3 * 0.4 * score / sum(scores) for score in scores])
    assert wanted == sorted(wanted)  # the larger the loss, the more is kept


def test_equal_losses_are_uniform_and_types_do_not_mix() -> None:
    alone = type_loss(shapes(2), ["q", "q"], [50.0, 5000.0], 0.6)
    among = type_loss(shapes(4), ["q", "k", "q", "k"], [50.0, 7.0, 5000.0, 7.0], 0.6)
    assert [among[0], among[2]] == pytest.approx(alone)
    assert [among[1], among[3]] == pytest.approx([0.6, 0.6])


def test_a_compression_above_one_is_cut_and_given_to_the_others() -> None:
    """1 / log of a loss near e is so large that its share would be above everything there is."""
    wanted = type_loss(shapes(4), ["q"] * 4, [1.0, 1e12, 1e12, 1e12], 0.5)
    assert wanted == pytest.approx([0, 2 / 3, 2 / 3, 2 / 3])
