"""What rounding costs in units of the loss, without rounding aware of it: from plain errors and two moments.

Errors that are fed forward column by column (`gptq.round_blocks`) leave an error E of tr(E H E^T) = sum_k e_k^2 /
R_kk^2, with e_k what is lost where column k is rounded and R the upper triangle of R^T R = H^-1. How large e_k is, is a
matter of the type and of the size of the weights; errors of different rows are independent. So a linear costs about

    1/2 tr(G E Sigma E^T) = 1/2 sum_i G_ii sum_k e_ik^2 / R_kk^2
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..rounding.balancing import random_rotation
from ..rounding.gptq import inverse_cholesky

BLOCK = 32
REFITTED = 1.7
"""What is left of V's error once U is solved for again: (1 - r / n) to this power, fitted on real rounding (figures in
docs/gguf.md). U makes up for what lies in the span of the rounded rows, which is most of what the inputs show."""


def column_weights(moment: Tensor, width: int = 1) -> Tensor:
    """What a squared error in each column costs (n,) float64, once the columns after its block have made up for it.

    With blocks of one column 1 / R_kk^2, the variance of input k that those after it leave open; else the diagonal of
    (R_bb^T R_bb)^-1, the same of a block that is rounded as a whole.

    Args:
        moment: Sigma (n, n).
        width: columns that are rounded together.
    """
    matrix, _ = inverse_cholesky(moment)
    if width == 1:
        return matrix.diagonal().double().square().reciprocal()
    found = []
    for start in range(0, len(matrix), width):
        block = matrix[start : start + width, start : start + width].double()
        inverse = torch.linalg.solve_triangular(
            block, torch.eye(len(block), dtype=block.dtype, device=block.device), upper=True
        )
        found.append(inverse.square().sum(dim=1))
    return torch.cat(found)


def dense_loss(errors: Tensor, output_weights: Tensor, columns: Tensor) -> float:
    """Predicted loss of a dense matrix in a type.

    Args:
        errors: of plain rounding, W - Q (m, n).
        output_weights: diagonal of G (m,).
        columns: see `column_weights`.
    """
    return float(output_weights.double() @ errors.double().square() @ columns) / 2


@dataclass(frozen=True)
class FactorUnits:
    """What an error of relative size 1 (mean square of the error over that of the weights) costs in each factor.

    Attributes:
        u, v: of U and of V^T.
    """

    u: float
    v: float

    def loss(self, u_error: float, v_error: float) -> float:
        """Predicted loss of relative errors in both."""
        return self.u * u_error + self.v * v_error


@dataclass(frozen=True)
class Truncations:
    """All truncations of one linear, ready for `units` at any rank.

    Attributes:
        u_basis, u_triangle: Q (m, k) and R (k, k) of U = Q R, U (m, k) of full rank.
        v_basis, v_triangle: Q (n, k) and R (k, k) of (V^T L)^T = Q R, L L^T = Sigma + s I.
        root: L (n, n).
    """

    u_basis: Tensor
    u_triangle: Tensor
    v_basis: Tensor
    v_triangle: Tensor
    root: Tensor


def truncations(u: Tensor, v: Tensor, moment: Tensor) -> Truncations:
    """Decompose factors whose first r columns and rows are the truncation to rank r.

    Args:
        u: (m, k).
        v: (k, n).
        moment: Sigma (n, n).
    """
    metric = moment.double().clone()
    mean = metric.diagonal().mean()
    metric.diagonal().add_(mean if mean > 0 else 1.0)  # as `balance_factors` balances
    root = torch.linalg.cholesky(metric)
    (u_basis, u_triangle), (v_basis, v_triangle) = torch.linalg.qr(u.double()), torch.linalg.qr((v.double() @ root).T)
    return Truncations(u_basis, u_triangle, v_basis, v_triangle, root)


def factor_units(
    of: Truncations, rank: int, moment: Tensor, gradient: Tensor, columns: Tensor, seed: int
) -> FactorUnits:
    """What rounding costs in the factors of rank r as `balance_factors` gives them: balanced, latent features alike.

    With u_i the rows of U and v_j the columns of V^T, every weight of row i of U has the mean square |u_i|^2 / r, every
    one of column j of V^T |v_j|^2 / r. V's error reaches the output through U, tr(U^T G U) in all; U's is rounded on
    the moment of the latent features.

    Args:
        of: the linear's.
        rank: r.
        moment: Sigma (n, n).
        gradient: G (m, m).
        columns: of Sigma, see `column_weights`.
        seed: of the rotation.
    """
    a, t, bt = torch.linalg.svd(of.u_triangle[:rank, :rank] @ of.v_triangle[:rank, :rank].T)
    u = of.u_basis[:, :rank] @ (a * t.sqrt())
    v = (t.sqrt()[:, None] * bt) @ of.v_basis[:, :rank].T
    v = torch.linalg.solve_triangular(of.root, v, upper=False, left=False)
    through = float(((gradient @ u) * u).sum()) / 2
    sizes = v.square().mean(dim=0)
    whole = len(sizes) - len(sizes) % BLOCK
    sizes[:whole] = sizes[:whole].reshape(-1, BLOCK).mean(dim=1).repeat_interleave(BLOCK)  # one scale per block
    rotation = random_rotation(rank, seed).to(v.device)
    turned = rotation.T @ v
    latent = turned @ moment @ turned.T
    rows = float(gradient.diagonal() @ u.square().mean(dim=1)) / 2
    left = (1 - rank / len(sizes)) ** REFITTED
    return FactorUnits(rows * float(column_weights(latent).sum()), through * float(sizes @ columns) * left)
