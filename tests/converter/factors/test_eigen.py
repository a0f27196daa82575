"""Eigenvectors and pseudoinverses, also where LAPACK's divide and conquer gives up."""

from __future__ import annotations

import pytest
import torch

from lowrank_export.converter.factors.eigen import symmetric_eigen, symmetric_pseudoinverse, symmetric_values


def moment(n: int, rank: int) -> torch.Tensor:
    x = torch.randn(rank, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    return x.T @ x


MATRICES = {
    "full": moment(8, 20),
    "singular": moment(8, 3),
    "zero": torch.zeros(8, 8, dtype=torch.float64),
    "identity": torch.eye(8, dtype=torch.float64),
}


@pytest.fixture(params=[False, True], ids=["lapack", "given up"])
def gives_up(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(matrix: torch.Tensor) -> None:
        raise torch.linalg.LinAlgError("failed to converge")

    if request.param:
        for name in ("eigh", "eigvalsh"):
            monkeypatch.setattr(torch.linalg, name, fails)


@pytest.mark.usefixtures("gives_up")
@pytest.mark.parametrize("name", MATRICES)
def test_eigenvectors_give_the_matrix_back(name: str) -> None:
    matrix = MATRICES[name]
    values, vectors = symmetric_eigen(matrix)
    torch.testing.assert_close((vectors * values) @ vectors.T, matrix)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(8, dtype=torch.float64))
    assert bool((values.diff() >= -1e-12).all())
    torch.testing.assert_close(symmetric_values(matrix), values)


@pytest.mark.usefixtures("gives_up")
@pytest.mark.parametrize("name", MATRICES)
def test_pseudoinverse(name: str) -> None:
    expected = torch.linalg.svd(MATRICES[name])
    inverse = torch.where(1e-10 * expected.S[0] < expected.S, 1 / expected.S, 0.0)
    wanted = expected.Vh.T @ torch.diag(torch.nan_to_num(inverse, posinf=0.0)) @ expected.U.T
    torch.testing.assert_close(symmetric_pseudoinverse(MATRICES[name], 1e-10), wanted)
