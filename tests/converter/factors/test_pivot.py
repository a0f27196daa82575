"""Pivot rows: the same product, with coefficients of order 1."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowrank_export.converter.factors.factorization import LowRankFactors
from lowrank_export.converter.factors.pivot import coefficients, orthonormal, pivot_order, to_pivot


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed))


def check(factors: LowRankFactors) -> Tensor:
    """Exactness, sizes and order; returns C."""
    m, r, n = factors.u.shape[0], factors.rank, factors.v.shape[1]
    found, product = to_pivot(factors), factors.product()
    torch.testing.assert_close(found.product(), product, rtol=0, atol=1e-10 * float(1 + product.abs().max()))
    assert (found.p.shape, found.c.shape, found.rank) == ((r, n), (m - r, r), r)
    assert found.p.numel() + found.c.numel() == r * (m + n - r)
    assert sorted(found.perm.tolist()) == list(range(m))
    return found.c


def greedy(basis: Tensor) -> list[int]:
    """The plain form: one row after another, projected out of all others."""
    rest, chosen = basis.clone(), []
    for _ in range(basis.shape[1]):
        chosen.append(int(rest.norm(dim=1).argmax()))
        direction = rest[chosen[-1]] / rest[chosen[-1]].norm()
        rest -= torch.outer(rest @ direction, direction)
    return chosen


@settings(max_examples=60, deadline=None)
@given(m=st.integers(2, 80), n=st.integers(1, 40), data=st.data())
def test_product_is_kept_for_every_shape(m: int, n: int, data: st.DataObject) -> None:
    r = data.draw(st.integers(1, m - 1))
    c = check(LowRankFactors(normal(m, r, seed=1), normal(r, n, seed=2)))
    assert float(c.abs().max()) < 8


@pytest.mark.parametrize(("m", "n", "r"), [(600, 200, 150), (200, 600, 150), (400, 400, 390)])
def test_coefficients_are_of_order_one(m: int, n: int, r: int) -> None:
    c = check(LowRankFactors(normal(m, r), normal(r, n)))
    assert float(c.abs().max()) < 2
    arbitrary = coefficients(orthonormal(normal(m, r)), torch.arange(m))  # the first rows that come
    assert float(arbitrary.abs().max()) > 5


def test_columns_of_very_different_size() -> None:
    """How the product is split into factors makes no difference."""
    scale = 10.0 ** -torch.arange(0, 12, dtype=torch.double)
    c = check(LowRankFactors(normal(60, 12) * scale, normal(12, 30) / scale[:, None]))
    assert float(c.abs().max()) < 2


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_rank_deficient_u(rank: int) -> None:
    u = normal(50, rank) @ normal(rank, 20) if rank else torch.zeros(50, 20, dtype=torch.double)
    assert float(check(LowRankFactors(u, normal(20, 30))).abs().max()) < 8


def test_duplicated_and_zero_rows() -> None:
    u = normal(400, 30).repeat_interleave(2, dim=0)
    u[5:300] = 0
    c = check(LowRankFactors(u, normal(30, 50)))
    assert float(c.abs().max()) < 4
    check(LowRankFactors(torch.ones(40, 5, dtype=torch.double), normal(5, 7)))


def test_rank_that_leaves_no_row() -> None:
    with pytest.raises(ValueError, match="rank 5 of 5 rows leaves no row"):
        to_pivot(LowRankFactors(normal(5, 5), normal(5, 7)))


def test_choice_is_that_of_plain_greedy_where_all_rows_are_candidates() -> None:
    basis = orthonormal(normal(200, 40))
    assert pivot_order([basis])[:40].tolist() == greedy(basis)


@pytest.mark.parametrize(("m", "n"), [(900, 120), (500, 300)])
def test_choice_in_blocks_is_as_good_as_plain_greedy(m: int, n: int) -> None:
    basis = orthonormal(normal(m, n))
    blocked = coefficients(basis, pivot_order([basis]))
    chosen = greedy(basis)
    plain = coefficients(basis, torch.tensor(chosen + [i for i in range(m) if i not in set(chosen)]))
    assert float(blocked.norm()) < 1.2 * float(plain.norm())


@pytest.mark.parametrize("ranks", [(60, 60), (60, 20), (20, 60), (1, 199)])
def test_one_order_with_pivots_of_two(ranks: tuple[int, int]) -> None:
    bases = [orthonormal(normal(200, r, seed=i)) for i, r in enumerate(ranks)]
    order = pivot_order(bases)
    assert sorted(order.tolist()) == list(range(200))
    for basis in bases:
        assert float(coefficients(basis, order).abs().max()) < 6
