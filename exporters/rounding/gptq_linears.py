"""GPTQ of a model: linear by linear in forward order, on the inputs that the rounded model makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from torch import Tensor, nn

from ...converter.checkpoint.lowrank_linear import LowRankLinear
from ...converter.checkpoint.pivot_linear import PivotLinear
from ...converter.core.progress import Progress
from ...converter.factors.fit import ALIGNMENT_DAMPING
from ...converter.factors.whitening import regression
from ...converter.machine.device_memory import device_errors
from ...converter.model.blocks import BlockSource
from ...converter.statistics.input_moments import input_moments
from .balancing import balance_factors, refit_u, seed_of
from .gptq import Encoded, Rounded

LABEL = "rounding, aware of what follows"
ADVICE = "calibrate on fewer or shorter windows, or use --device cpu"
U, V, P, C, WEIGHT = "lowrank_u.weight", "lowrank_v.weight", "lowrank_p.weight", "lowrank_c.weight", "weight"

Type = TypeVar("Type")
Round = Callable[[str, Tensor, Tensor, Type], Rounded[Encoded]]
"""Tensor name, weights (m, n) on the CPU, moment of their inputs (n, n), type -> the weights rounded, on the CPU."""


def round_linears(
    blocks: BlockSource,
    chunks: Sequence[Tensor],
    types: Callable[[str], Mapping[str, Type]],
    round: Round[Type, Encoded],
    progress: Progress,
    alpha: float = 0.0,
) -> Iterator[tuple[str, Encoded]]:
    """Round the linears of a model's blocks, each on the inputs that the rounded linears before it make.

    Forwards, moments and factors are computed on the device of the blocks; the rounding itself is the CPU's.

    Args:
        blocks: the model, dense or factored.
        chunks: calibration windows, (B, T) each.
        types: name of a linear -> part (`U`, `V`, ...) -> its type. A factored linear with a type for its `WEIGHT` is
            multiplied out; one without any is left as it is.
        round: rounds one matrix.
        progress: receives blocks.
        alpha: weight of what the model computed before it was rounded in the target of each linear, see `alignment`;
            above 0 that model runs beside.

    Yields:
        Tensor name and rounded matrix, rows in the checkpoint's order.

    Raises:
        InputError: as `round` says.
        ResourceError: the device's memory is too small.
    """
    with device_errors(blocks.device, ADVICE):
        for stop in input_moments(blocks, chunks, progress, LABEL, beside=alpha > 0):
            for path in stop.group.linears:
                name = blocks.family.linear_name(stop.block, path)
                wanted = types(name)
                if not wanted:
                    continue
                towards = None if stop.cross_moment is None else alignment(stop.moment, alpha * stop.cross_moment)
                linear, encoded = round_linear(name, stop.tapped.linear(path), stop.moment, wanted, round, towards)
                stop.tapped.install(path, linear)
                for part, rows in encoded.items():
                    yield f"{name}.{part}", rows


def round_linear(
    name: str,
    linear: nn.Module,
    moment: Tensor,
    types: Mapping[str, Type],
    round: Round[Type, Encoded],
    towards: Tensor | None = None,
) -> tuple[nn.Module, dict[str, Encoded]]:
    """Round one linear.

    Args:
        name: for errors, and as the seed of what is random.
        linear: dense or factored.
        moment: Sigma (n, n) of its inputs.
        types: part -> type.
        round: rounds one matrix.
        towards: see `alignment`; None where the target is the linear itself.

    Returns:
        A module that computes what the runtime will, and part -> encoded matrix.

    Raises:
        InputError: as `round` says.
    """
    if WEIGHT in types:
        assert isinstance(linear, nn.Linear | LowRankLinear | PivotLinear)
        weight = linear.weight if isinstance(linear, nn.Linear) else linear.dense_weight()
        target = _aligned(weight.data, towards)
        rounded = _rounded(round, f"{name}.{WEIGHT}", target, moment, types[WEIGHT])
        return _dense(rounded.values, linear.bias), {WEIGHT: rounded.encoded}
    parts = (U, V) if isinstance(linear, LowRankLinear) else (C, P)
    left, right = (linear.get_submodule(part.removesuffix(".weight")) for part in parts)
    assert isinstance(left, nn.Linear) and isinstance(right, nn.Linear)
    second, first = _rounded_factors(name, (left.weight.data, right.weight.data), moment, types, parts, round, towards)
    left.weight, right.weight = _parameter(second.values), _parameter(first.values)
    return linear, {parts[0]: second.encoded, parts[1]: first.encoded}


def _rounded_factors(
    name: str,
    factors: tuple[Tensor, Tensor],
    moment: Tensor,
    types: Mapping[str, Type],
    parts: tuple[str, str],
    round: Round[Type, Encoded],
    towards: Tensor | None,
) -> tuple[Rounded[Encoded], Rounded[Encoded]]:
    """U and V, or C and P: the one that meets the input first, then the other in closed form for it, then that one.

    Rows of P are outputs themselves: pivot rows are not balanced.
    """
    left, right = factors
    if parts == (U, V) and right.shape[0] <= min(left.shape[0], right.shape[1]):
        left, right = balance_factors(left, right, moment, seed_of(name))
    first = _rounded(round, f"{name}.{parts[1]}", right, moment, types[parts[1]])
    fitted, latent = refit_u(left, _aligned(right, towards), first.values, moment)
    return _rounded(round, f"{name}.{parts[0]}", fitted, latent, types[parts[0]]), first


def alignment(moment: Tensor, cross_moment: Tensor) -> Tensor:
    """A (n, n) float64 with W (I + A) X' the least squares of W (X' + D), D what the inputs X' lack.

    The errors of what was rounded before show in the inputs; as far as the inputs determine them, W takes them back.

    Args:
        moment: Sigma' (n, n) of X'.
        cross_moment: D X'^T / T (n, n).
    """
    return regression(moment, ALIGNMENT_DAMPING).weight(cross_moment)


def _aligned(weight: Tensor, towards: Tensor | None) -> Tensor:
    """W (I + A), in W's dtype."""
    return weight if towards is None else weight + (weight.double() @ towards).to(weight.dtype)


def _rounded(round: Round[Type, Encoded], name: str, weights: Tensor, moment: Tensor, type: Type) -> Rounded[Encoded]:
    """One matrix rounded; its values on the device that it came from."""
    found = round(name, weights.float().cpu(), moment, type)
    return Rounded(found.encoded, found.values.to(weights.device))


def _dense(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = _parameter(weight)
    linear.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
    return linear


def _parameter(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)
