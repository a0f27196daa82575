"""Half the work, the same product: across panels of which the last is narrower."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lowrank_export.converter.factors import products

PANEL = 7


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def second_moment(n: int) -> Tensor:
    x = random(3 * n, n, seed=1)
    return x.T @ x


@pytest.fixture(autouse=True)
def narrow_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "PANEL", PANEL)


@pytest.mark.parametrize("m", [1, 5, 7, 8, 23])
@pytest.mark.parametrize("n", [1, 6, 7, 14, 20])
class TestProducts:
    def test_upper_times(self, m: int, n: int) -> None:
        upper, b = random(m, m).triu(), random(m, n, seed=2)
        torch.testing.assert_close(products.upper_times(upper, b), upper @ b, rtol=0, atol=1e-12)

    def test_symmetric_product(self, m: int, n: int) -> None:
        a, sigma = random(m, n), second_moment(m)
        found = products.symmetric_product(a, sigma @ a)
        torch.testing.assert_close(found, a.T @ sigma @ a, rtol=1e-12, atol=1e-9)
        assert torch.equal(found, found.T)

    def test_outer_form(self, m: int, n: int) -> None:
        a, sigma = random(m, n), second_moment(n)
        found = products.outer_form(a, sigma)
        torch.testing.assert_close(found, a @ sigma @ a.T, rtol=1e-12, atol=1e-9)
        assert torch.equal(found, found.T)
        torch.testing.assert_close(products.outer_form(a.T.contiguous().T, sigma), found, rtol=1e-12, atol=1e-9)

    def test_energy(self, m: int, n: int) -> None:
        a, sigma = random(m, n), second_moment(n)
        assert products.energy(a, sigma) == pytest.approx(float(torch.trace(a @ sigma @ a.T)), rel=1e-12)
