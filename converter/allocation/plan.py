"""The rank plan: which linear keeps how many ranks. Data only: saved, printable, made before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..checkpoint import layouts
from ..checkpoint.layouts import Layout

NAMED = 4  # experts that a line names


@dataclass(frozen=True)
class LinearShape:
    """One linear of the model: full name, block index, out x in, and how it is stored once it is factored.

    `copies` linears of the shape, a stack (stacks.py), have one rank.
    """

    name: str
    block: int
    out_features: int
    in_features: int
    layout: Layout = "two-factor"
    copies: int = 1

    @property
    def parameters(self) -> int:
        """m n of each copy, the bias not counted."""
        return self.copies * self.out_features * self.in_features

    @property
    def break_even_rank(self) -> float:
        """From here on the layout saves nothing."""
        return layouts.break_even(self.layout, self.out_features, self.in_features)

    def parameters_at(self, rank: int) -> int:
        """Parameters of the linear at a rank."""
        return self.copies * layouts.parameters(self.layout, self.out_features, self.in_features, rank)

    def rank_for(self, retention: float) -> float:
        """The rank, not rounded, at which a share of the parameters is kept."""
        return layouts.rank_for(self.layout, self.out_features, self.in_features, retention)


@dataclass(frozen=True)
class LinearPlan:
    """What one linear becomes: of rank `rank`, or dense where it is None.

    `compressed` is False for a linear the user excluded; it does not count towards the retention ratio.
    """

    shape: LinearShape
    rank: int | None
    compressed: bool = True

    @property
    def parameters(self) -> int:
        """Parameters kept."""
        return self.shape.parameters if self.rank is None else self.shape.parameters_at(self.rank)

    @property
    def retention(self) -> float:
        """Kept / original parameters of this linear."""
        return self.parameters / self.shape.parameters


@dataclass(frozen=True)
class FewTokens:
    """An expert that the calibration text sends fewer tokens than its linears have inputs.

    Attributes:
        block, expert: which.
        sent: tokens that the router sends to it.
        shown: tokens that it is fitted on, those of others included, see `statistics/few_visits.py`.
    """

    block: int
    expert: int
    sent: int
    shown: int


@dataclass(frozen=True)
class RankPlan:
    """Ranks of every linear of the blocks.

    Attributes:
        linears: in model order.
        target: retention ratio asked for.
        rank_multiple: every rank is a multiple of this.
        importance: relative importance per block (mean 1) where the allocation used one.
        few_tokens: experts that are fitted on tokens of others too.
    """

    linears: tuple[LinearPlan, ...]
    target: float
    rank_multiple: int
    importance: tuple[float, ...] = ()
    few_tokens: tuple[FewTokens, ...] = ()

    @property
    def original_parameters(self) -> int:
        """Of the linears that are compressed."""
        return sum(linear.shape.parameters for linear in self.linears if linear.compressed)

    @property
    def kept_parameters(self) -> int:
        """Of the linears that are compressed."""
        return sum(linear.parameters for linear in self.linears if linear.compressed)

    @property
    def retention(self) -> float:
        """Kept / original parameters over the compressed linears; 1 where none is compressed."""
        return self.kept_parameters / self.original_parameters if self.original_parameters else 1.0

    @property
    def rounding_loss(self) -> float:
        """Retention that rounding ranks to their multiple left unused."""
        return max(0.0, self.target - self.retention)

    @property
    def ranks(self) -> dict[str, int]:
        """Linear name -> rank, factored linears only."""
        return {linear.shape.name: linear.rank for linear in self.linears if linear.rank is not None}

    @property
    def few_tokens_line(self) -> str:
        """In words, which experts and why; empty where there are none."""
        found = sorted(self.few_tokens, key=lambda one: one.sent)
        if not found:
            return ""
        named = [f"block {one.block}: {one.expert} ({one.sent} of {one.shown})" for one in found[:NAMED]]
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        return (
            "experts that are sent fewer tokens than their linears have inputs, fitted on tokens of others too: "
            f"{', '.join(named)}{more}; more --windows send them more"
        )

    def shapes(self, tensors: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Tensor shapes of the factored checkpoint, given those of the dense one; no permutation is taken as absent.

        Args:
            tensors: tensor name -> shape of the dense checkpoint.
        """
        result = dict(tensors)
        for linear in self.linears:
            if linear.rank is not None:
                m, n = result.pop(linear.shape.name + ".weight")
                result |= layouts.shapes(linear.shape.layout, linear.shape.name, m, n, linear.rank)
        return result

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-ready data (plan.json)."""
        return {
            "target_retention": self.target,
            "retention": self.retention,
            "compression": 1 - self.retention,
            "rounding_loss": self.rounding_loss,
            "rank_multiple": self.rank_multiple,
            "original_parameters": self.original_parameters,
            "kept_parameters": self.kept_parameters,
            "block_importance": list(self.importance),
            **({"few_tokens": [asdict(one) for one in self.few_tokens]} if self.few_tokens else {}),
            "linears": {
                linear.shape.name: {
                    "shape": [linear.shape.out_features, linear.shape.in_features],
                    "rank": "dense" if linear.rank is None else linear.rank,
                    "parameters": linear.parameters,
                    "retention": linear.retention,
                }
                for linear in self.linears
            },
        }
