"""The modules that replace `nn.Linear`: two low-rank matmuls, or pivot rows and their combinations."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from .layouts import Layout
from .pivot_linear import PivotLinear


class LowRankLinear(nn.Module):
    """y = U (V^T x) + b.

    Parameters are named as in the factored checkpoint: `lowrank_v.weight` (rank x in), `lowrank_u.weight` (out x rank)
    and, where the replaced linear had one, `bias` (out).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        bias: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.lowrank_v = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.lowrank_u = nn.Linear(rank, out_features, bias=False, device=device, dtype=dtype)
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        y: Tensor = self.lowrank_u(self.lowrank_v(x))
        return y if self.bias is None else y + self.bias

    def dense_weight(self) -> Tensor:
        """U V^T, (out x in)."""
        return self.lowrank_u.weight @ self.lowrank_v.weight

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"rank={self.rank}, bias={self.bias is not None}"
        )


def replace_linears(
    model: nn.Module, ranks: dict[str, int], layout: Layout = "two-factor", in_order: Collection[str] = ()
) -> None:
    """Replace each named linear of `model` by an uninitialized factored one of the given rank, in place.

    Args:
        ranks: linear name -> rank.
        layout: of all of them.
        in_order: names of the linears without a permutation (pivot layout only).

    Raises:
        KeyError: a name is not a linear of the model.
    """
    for name, rank in ranks.items():
        parent_name, _, child = name.rpartition(".")
        try:
            parent = model.get_submodule(parent_name)
            linear = getattr(parent, child)
        except AttributeError as error:
            raise KeyError(name) from error
        if not isinstance(linear, nn.Linear):
            raise KeyError(name)
        setattr(parent, child, _replacement(linear, rank, layout, permuted=name not in in_order))


def _replacement(linear: nn.Linear, rank: int, layout: Layout, *, permuted: bool) -> LowRankLinear | PivotLinear:
    sizes = (linear.in_features, linear.out_features, rank)
    bias, device, dtype = linear.bias is not None, linear.weight.device, linear.weight.dtype
    if layout == "pivot":
        return PivotLinear(*sizes, bias=bias, permuted=permuted, device=device, dtype=dtype)
    return LowRankLinear(*sizes, bias=bias, device=device, dtype=dtype)
