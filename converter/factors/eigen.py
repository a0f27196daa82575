"""Eigenvectors of symmetric matrices, where LAPACK's fast algorithm gives up as well."""

from __future__ import annotations

import torch
from torch import Tensor


def symmetric_eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending (n,), and eigenvectors (n, n) of a symmetric positive semi-definite matrix (n, n).

    LAPACK's divide and conquer fails now and then on clustered eigenvalues, such as those of U^T U where U is
    orthonormal but for rounding. The singular value decomposition of the same matrix is slower and does not.
    """
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        vectors, values, _ = torch.linalg.svd(matrix)
        values, vectors = values.flip(0), vectors.flip(1)
    return values, vectors


def symmetric_values(matrix: Tensor) -> Tensor:
    """The eigenvalues of `symmetric_eigen` alone."""
    try:
        values: Tensor = torch.linalg.eigvalsh(matrix)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        values = torch.linalg.svdvals(matrix).flip(0)
    return values


def symmetric_pseudoinverse(matrix: Tensor, cutoff: float) -> Tensor:
    """Moore-Penrose inverse (n, n) of a symmetric positive semi-definite matrix.

    Args:
        matrix: (n, n).
        cutoff: eigenvalues below this fraction of the largest count as zero.
    """
    values, vectors = symmetric_eigen(matrix)
    kept = values > cutoff * values[-1]
    inverse = torch.where(kept, values, 1.0).reciprocal() * kept
    return (vectors * inverse) @ vectors.T
