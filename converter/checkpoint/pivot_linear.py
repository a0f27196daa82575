"""The module of the pivot layout: some rows of W, and the others as combinations of them (see pivot.py)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PivotLinear(nn.Module):
    """z = (P x, C P x), y = z gathered by the permutation, + b.

    Tensors are named as in the factored checkpoint: `lowrank_p.weight` (rank x in), `lowrank_c.weight`
    (out - rank x rank), `bias` (out) where the replaced linear had one, and the buffer `lowrank_perm` (out, int32),
    y[i] = z[lowrank_perm[i]], which is absent (None) where it would be the identity.
    """

    lowrank_perm: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        bias: bool,
        permuted: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.lowrank_p = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.lowrank_c = nn.Linear(rank, out_features - rank, bias=False, device=device, dtype=dtype)
        identity = torch.arange(out_features, dtype=torch.int32, device=device)
        self.register_buffer("lowrank_perm", identity if permuted else None)
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        p = self.lowrank_p(x)
        y = self._gather(torch.cat([p, self.lowrank_c(p)], dim=-1), dim=-1)
        return y if self.bias is None else y + self.bias

    def dense_weight(self) -> Tensor:
        """W, (out x in)."""
        p = self.lowrank_p.weight
        return self._gather(torch.cat([p, self.lowrank_c.weight @ p]), dim=0)

    def _gather(self, z: Tensor, *, dim: int) -> Tensor:
        return z if self.lowrank_perm is None else z.index_select(dim, self.lowrank_perm)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"bias={self.bias is not None}, permuted={self.lowrank_perm is not None}"
        )
