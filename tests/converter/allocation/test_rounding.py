"""Rank plans: multiples, budget met and never exceeded, clear refusals."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_export.converter.allocation.plan import LinearShape
from lowrank_export.converter.allocation.rounding import round_ranks
from lowrank_export.converter.checkpoint.layouts import LAYOUTS, Layout, parameters, rank_for
from lowrank_export.converter.core.errors import UsageError


def shapes_of(blocks: int, sizes: list[tuple[int, int]], layout: Layout = "two-factor") -> list[LinearShape]:
    return [LinearShape(f"b{b}.l{i}", b, m, n, layout) for b in range(blocks) for i, (m, n) in enumerate(sizes)]


SIZES = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)]
SMOLLM2 = shapes_of(30, SIZES)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("multiple", [1, 8, 32, 64])
@pytest.mark.parametrize("target", [0.4, 0.6, 0.8, 0.9])
def test_meets_the_target_within_a_thousandth_on_a_real_shape(multiple: int, target: float, layout: Layout) -> None:
    shapes = shapes_of(30, SIZES, layout)
    plan = round_ranks(shapes, [target] * len(shapes), target=target, rank_multiple=multiple)
    assert target - 0.001 <= plan.retention <= target
    assert all(rank % multiple == 0 for rank in plan.ranks.values())
    assert plan.rounding_loss == pytest.approx(target - plan.retention)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(4, 64), st.integers(4, 64)), min_size=1, max_size=5),
    target=st.floats(0.05, 1.0),
    multiple=st.integers(1, 8),
    layout=st.sampled_from(LAYOUTS),
    data=st.data(),
)
def test_never_exceeds_the_budget(
    sizes: list[tuple[int, int]], target: float, multiple: int, layout: Layout, data: st.DataObject
) -> None:
    shapes = shapes_of(2, sizes, layout)
    wanted = [data.draw(st.floats(0, 1)) for _ in shapes] if target < 1 else [1.0] * len(shapes)
    dense = sum(s.parameters for s, w in zip(shapes, wanted, strict=True) if w >= 1)
    original = sum(s.parameters for s in shapes)
    try:
        plan = round_ranks(shapes, wanted, target=target, rank_multiple=multiple)
    except UsageError:
        smallest = sum(s.parameters_at(multiple) for s, w in zip(shapes, wanted, strict=True) if w < 1)
        assert dense + smallest > target * original or any(multiple >= s.break_even_rank for s in shapes)
        return
    assert plan.kept_parameters <= target * original * (1 + 1e-12)
    for linear in plan.linears:
        if linear.rank is not None:
            assert linear.rank >= multiple and linear.rank % multiple == 0
            assert linear.parameters < linear.shape.parameters
    steps = [
        linear.shape.parameters_at(linear.rank + multiple) - linear.parameters
        for linear in plan.linears
        if linear.rank is not None and linear.rank + multiple < linear.shape.break_even_rank
    ]
    assert not steps or target * original - plan.kept_parameters < max(steps)


def test_excluded_linears_stay_dense_and_do_not_count() -> None:
    plan = round_ranks(
        SMOLLM2, [0.5] * len(SMOLLM2), target=0.5, rank_multiple=8, keep_dense=frozenset({"b0.l0", "b1.l6"})
    )
    kept = {linear.shape.name: linear for linear in plan.linears}
    assert kept["b0.l0"].rank is None and not kept["b0.l0"].compressed
    assert plan.original_parameters == sum(s.parameters for s in SMOLLM2 if s.name not in ("b0.l0", "b1.l6"))
    assert 0.499 <= plan.retention <= 0.5


def test_wanting_everything_keeps_a_linear_dense() -> None:
    plan = round_ranks(SMOLLM2, [1.0] * len(SMOLLM2), target=1.0, rank_multiple=32)
    assert plan.ranks == {} and plan.retention == 1


def test_multiple_larger_than_the_matrix() -> None:
    with pytest.raises(UsageError, match=r"rank multiple 256 is too large for b0\.l1 \(192 x 576\).*--rank-multiple"):
        round_ranks(SMOLLM2, [0.5] * len(SMOLLM2), target=0.5, rank_multiple=256)


def test_target_below_one_multiple_everywhere() -> None:
    with pytest.raises(UsageError, match=r"retention 0\.05 cannot be met with rank multiple 64.*--retention"):
        round_ranks(SMOLLM2, [0.05] * len(SMOLLM2), target=0.05, rank_multiple=64)


def test_plan_predicts_the_tensors_of_the_checkpoint() -> None:
    shapes = shapes_of(1, [(8, 6), (6, 8)])
    plan = round_ranks(shapes, [0.5, 0.5], target=0.5, rank_multiple=1)
    dense = {"b0.l0.weight": (8, 6), "b0.l1.weight": (6, 8), "embed.weight": (9, 9)}
    factored = plan.shapes(dense)
    rank = plan.ranks["b0.l0"]
    assert factored["b0.l0.lowrank_u.weight"] == (8, rank) and factored["b0.l0.lowrank_v.weight"] == (rank, 6)
    assert factored["embed.weight"] == (9, 9) and "b0.l0.weight" not in factored


def test_plan_predicts_the_tensors_of_the_pivot_layout() -> None:
    plan = round_ranks(shapes_of(1, [(8, 6)], "pivot"), [0.7], target=0.7, rank_multiple=1)
    rank = plan.ranks["b0.l0"]
    factored = plan.shapes({"b0.l0.weight": (8, 6)})
    expected = {"lowrank_p.weight": (rank, 6), "lowrank_c.weight": (8 - rank, rank), "lowrank_perm": (8,)}
    assert factored == {f"b0.l0.{name}": shape for name, shape in expected.items()}
    assert plan.kept_parameters == rank * 6 + (8 - rank) * rank


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("m", "n"), [(576, 576), (192, 576), (1536, 576)])
def test_rank_for_inverts_the_parameters(layout: Layout, m: int, n: int) -> None:
    shape = LinearShape("x", 0, m, n, layout)
    for rank in range(1, int(shape.break_even_rank)):
        assert rank_for(layout, m, n, parameters(layout, m, n, rank) / (m * n)) == pytest.approx(rank, rel=1e-6)
    assert shape.rank_for(1.0) == pytest.approx(shape.break_even_rank)


def test_pivot_rows_save_at_every_rank() -> None:
    """At retention 0.5 of a square matrix the rank is 0.29 d instead of 0.25 d, at 0.8 0.55 d instead of 0.4 d."""
    assert rank_for("pivot", 1000, 1000, 0.5) == pytest.approx(292.9, abs=0.1)
    assert rank_for("pivot", 1000, 1000, 0.8) == pytest.approx(552.8, abs=0.1)
    assert parameters("pivot", 1000, 800, 799) < 1000 * 800
