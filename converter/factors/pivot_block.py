"""One block from two factors to pivot rows, in place, with as few permutations left as possible."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..checkpoint.lowrank_linear import LowRankLinear
from ..checkpoint.pivot_linear import PivotLinear
from ..families.family import Family, SharedOrder
from .factorization import LowRankFactors
from .pivot import coefficients, orthonormal, pivot_order, to_pivot

LARGEST_COEFFICIENT = 8.0  # of C; a shared order gives 1 to 2.5, and larger ones amplify the rounding of P


@torch.no_grad()
def pivot_block(block: nn.Module, family: Family) -> None:
    """Replace every `LowRankLinear` of a block by a `PivotLinear` of the same product.

    Where linears share the order of their outputs (gate and up), the features between them and their consumer (down)
    are put into an order that begins with the pivots of all of them, so that none needs a permutation. Where no order
    suits all, it begins with the pivots of the first and the others keep a permutation.
    """
    in_order: set[str] = set()
    for shared in family.shared_orders:
        in_order |= _share_order(block, shared)
    for name in family.linears:
        module = block.get_submodule(name)
        if isinstance(module, LowRankLinear):
            parent, _, child = name.rpartition(".")
            setattr(block.get_submodule(parent), child, as_pivot(module, in_order=name in in_order))


@torch.no_grad()
def as_pivot(module: LowRankLinear, *, in_order: bool = False) -> PivotLinear:
    """The same linear with pivot rows, in the dtype of its factors.

    Args:
        in_order: take the first rows as pivots, with no permutation.
    """
    u, v = module.lowrank_u.weight, module.lowrank_v.weight
    factors = LowRankFactors(u.double(), v.double())
    order = torch.arange(module.out_features, device=u.device) if in_order else None
    found = to_pivot(factors, order)
    made = PivotLinear(
        module.in_features, module.out_features, module.rank, bias=False, permuted=not in_order, device="meta"
    )
    made.lowrank_p.weight = nn.Parameter(found.p.to(u.dtype), requires_grad=False)
    made.lowrank_c.weight = nn.Parameter(found.c.to(u.dtype), requires_grad=False)
    made.bias = module.bias
    if not in_order:
        made.lowrank_perm = found.perm.to(torch.int32)
    return made


def _share_order(block: nn.Module, shared: SharedOrder) -> set[str]:
    """Reorder the features of one group so that pivots come first; returns the linears whose do."""
    producers = {name: block.get_submodule(name) for name in shared.producers}
    bases = {
        name: orthonormal(module.lowrank_u.weight)
        for name, module in producers.items()
        if isinstance(module, LowRankLinear)
    }
    if not bases:
        return set()
    order = pivot_order(list(bases.values()))
    if any(float(coefficients(basis, order).abs().max()) > LARGEST_COEFFICIENT for basis in bases.values()):
        first, basis = next(iter(bases.items()))
        order, bases = pivot_order([basis]), {first: basis}
    for module in producers.values():
        _reorder_outputs(module, order)
    _reorder_inputs(block.get_submodule(shared.consumer), order)
    return set(bases)


def _reorder_outputs(module: nn.Module, order: Tensor) -> None:
    """Output feature i becomes what feature order[i] was."""
    linear = module.lowrank_u if isinstance(module, LowRankLinear) else module
    assert isinstance(linear, nn.Linear) and isinstance(module, nn.Linear | LowRankLinear)
    linear.weight = nn.Parameter(linear.weight[order], requires_grad=False)
    if module.bias is not None:
        module.bias = nn.Parameter(module.bias[order], requires_grad=False)


def _reorder_inputs(module: nn.Module, order: Tensor) -> None:
    """Input feature i becomes what feature order[i] was."""
    linear = module.lowrank_v if isinstance(module, LowRankLinear) else module
    assert isinstance(linear, nn.Linear)
    linear.weight = nn.Parameter(linear.weight[:, order], requires_grad=False)
