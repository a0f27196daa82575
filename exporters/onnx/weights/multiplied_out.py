"""Which factored linears an export multiplies out again: where one matmul costs less than two.

A matmul takes time to start, whatever its size. On narrow linears, or at ranks near break-even, that is more than
factors save: a k of 192 x 576 at rank 96 has 74,000 weights instead of 111,000, and one matmul more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

from ....converter.checkpoint.layouts import C_SUFFIX, P_SUFFIX, PERM_SUFFIX, U_SUFFIX, V_SUFFIX
from ....converter.checkpoint.lowrank_linear import LowRankLinear
from ....converter.checkpoint.pivot_linear import PivotLinear
from ...chosen import CHOSEN
from .sizes import tensor_bytes
from .types import OnnxOptions, bits_of

if TYPE_CHECKING:
    from torch import nn

Shapes = Mapping[str, tuple[int, ...]]

MATMUL, SPLIT, CONCAT, REORDER = 5.0, 2.0, 2.0, 5.0
"""Microseconds that a node takes besides its weights; all three nodes of a permutation. See docs/onnx.md."""
PER_MILLION_WEIGHTS = {32: 85.0, 16: 85.0, 8: 20.0, 4: 13.0}
"""Bits of a weight -> microseconds, for one token on two threads."""
PER_MEGABYTE = 25.0
"""What saving a megabyte is worth in microseconds, besides the time it saves: what reading it once more would take."""

SHARED_INPUT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
PACKED = "q_proj"
"""Of dense linears, those that share this one's input are one matmul, which attention takes whole."""


@dataclass(frozen=True)
class _Linear:
    """A linear as a checkpoint has it: inner factor (V or P), outer factor (U or C), or dense and neither.

    Attributes:
        name: without `.weight`.
        m, n: rows and columns.
        inner, outer: name -> shape of its tensor, empty where the linear is dense.
        others: microseconds of what the layout needs besides matmuls.
    """

    name: str
    m: int
    n: int
    inner: Shapes = field(default_factory=dict)
    outer: Shapes = field(default_factory=dict)
    others: float = 0.0

    @property
    def dense(self) -> Shapes:
        """Name -> shape of its tensor once it is multiplied out."""
        return {f"{self.name}.weight": (self.m, self.n)}


def multiplied_out(shapes: Shapes, quantization: str, options: OnnxOptions) -> frozenset[str]:
    """Names of the factored linears that are cheaper as one matmul, with what shares their input taken into account.

    Args:
        shapes: tensor name in the checkpoint -> shape; a factored linear as its factors.
        quantization: see `types.QUANTIZATIONS`.
        options: of the encoding; none are multiplied out where `factors` is "all", or where a size chose the forms.
    """
    if options.factors == "all" or quantization == CHOSEN:
        return frozenset()
    found: set[str] = set()
    for group in _groups(shapes):
        factored = [linear for linear in group if linear.inner]
        ways = product((False, True), repeat=len(factored))  # first all factored: that wins where nothing is gained
        chosen = [{linear.name for linear, out in zip(factored, way, strict=True) if out} for way in ways]
        found |= min(chosen, key=lambda out: _cost(group, out, quantization, options))
    return frozenset(found)


def stored_shapes(shapes: Shapes, quantization: str, options: OnnxOptions) -> dict[str, tuple[int, ...]]:
    """The tensors that an export stores: a linear that is multiplied out as its `.weight` instead of its factors."""
    out = multiplied_out(shapes, quantization, options)
    stored = {name: shape for name, shape in shapes.items() if name.rpartition(".lowrank_")[0] not in out}
    for group in _groups(shapes):
        for linear in group:
            if linear.name in out:
                stored |= linear.dense
    return stored


def _groups(shapes: Shapes) -> Iterator[list[_Linear]]:
    """Every factored linear once, together with the linears that share its input, factored or dense."""
    seen: set[str] = set()
    for tensor in shapes:
        name, _, factor = tensor.rpartition(".lowrank_")
        if not factor or name in seen:
            continue
        parent, _, last = name.rpartition(".")
        members = next((group for group in SHARED_INPUT if last in group), (last,))
        linears = [_linear(f"{parent}.{member}" if parent else member, shapes) for member in members]
        group = [linear for linear in linears if linear is not None]
        seen.update(linear.name for linear in group)
        yield group


def _linear(name: str, shapes: Shapes) -> _Linear | None:
    def stored(suffix: str) -> Shapes:
        return {name + suffix: shapes[name + suffix]}

    if name + V_SUFFIX in shapes:
        inner, outer = stored(V_SUFFIX), stored(U_SUFFIX)
        return _Linear(name, outer[name + U_SUFFIX][0], inner[name + V_SUFFIX][1], inner, outer)
    if name + P_SUFFIX in shapes:
        inner, outer = stored(P_SUFFIX), stored(C_SUFFIX)
        rank, n = inner[name + P_SUFFIX]
        others = CONCAT + (REORDER if name + PERM_SUFFIX in shapes else 0.0)
        return _Linear(name, outer[name + C_SUFFIX][0] + rank, n, inner, outer, others)
    if f"{name}.weight" in shapes:
        m, n = shapes[f"{name}.weight"]
        return _Linear(name, m, n)
    return None


def _cost(group: list[_Linear], out: Set[str], quantization: str, options: OnnxOptions) -> float:
    """Of a group, in microseconds. What meets the input is one matmul where its types agree, as the graph has it."""
    factored = [linear for linear in group if linear.inner and linear.name not in out]
    dense = [linear for linear in group if linear not in factored]
    tensors = [tensor for linear in factored for tensor in (linear.inner, linear.outer)]
    tensors += [linear.dense for linear in dense]
    cost = sum(linear.others for linear in factored) + MATMUL * len(factored)
    for name, shape in ((name, shape) for tensor in tensors for name, shape in tensor.items()):
        cost += weights_cost(shape, bits_of(name, quantization), tensor_bytes(name, shape, quantization, options))
    if not factored:
        packed = any(linear.name.endswith(PACKED) for linear in dense)
        return cost + MATMUL * (1 if packed else len(dense))
    inner = bits_of(next(iter(factored[0].inner)), quantization)
    together = len(factored) + sum(bits_of(next(iter(linear.dense)), quantization) == inner for linear in dense)
    return cost + MATMUL * (1 + len(group) - together) + (SPLIT if together > 1 else 0.0)


def weights_cost(shape: tuple[int, ...], bits: int, bytes: int) -> float:
    """Microseconds that the weights of a matmul are counted, what their bytes are worth included.

    Args:
        shape: (m, n).
        bits: of a weight.
        bytes: of the matrix.
    """
    return (PER_MILLION_WEIGHTS[bits] * shape[0] * shape[1] + PER_MEGABYTE * bytes) / 1e6


def multiply_out(model: nn.Module, names: Iterable[str]) -> None:
    """Replace each named factored linear of a model by the dense one that computes the same, in place."""
    from torch import nn

    for name in names:
        factored = model.get_submodule(name)
        assert isinstance(factored, LowRankLinear | PivotLinear)
        dense = nn.Linear(factored.in_features, factored.out_features, bias=False, device="meta")
        dense.weight = nn.Parameter(factored.dense_weight().detach(), requires_grad=False)
        dense.bias = factored.bias  # type: ignore[assignment]
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, dense)
