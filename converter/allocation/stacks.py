"""The same linear of all experts of a block as one: a runtime computes it from one tensor, so it has one rank."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from .plan import LinearPlan, LinearShape, RankPlan

Stack = Callable[[str], str]
"""Full name of a linear -> name of what it shares a rank with; a linear that stands alone is its own."""


def stacked(shapes: Sequence[LinearShape], stack: Stack) -> list[LinearShape]:
    """One shape per stack, as often as it has linears, in the order of their first."""
    found: dict[str, LinearShape] = {}
    for shape in shapes:
        name = stack(shape.name)
        before = found.get(name)
        found[name] = replace(shape, name=name, copies=1 if before is None else before.copies + 1)
    return list(found.values())


def unstacked(plan: RankPlan, shapes: Sequence[LinearShape], stack: Stack) -> RankPlan:
    """The plan of every linear, from the plan of stacks."""
    of = {linear.shape.name: linear for linear in plan.linears}
    linears = [LinearPlan(shape, of[stack(shape.name)].rank, of[stack(shape.name)].compressed) for shape in shapes]
    return replace(plan, linears=tuple(linears))


def members_of(names: Iterable[str], stack: Stack) -> dict[str, list[str]]:
    """Stack -> its linears."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(stack(name), []).append(name)
    return found


def summed(energies: Mapping[str, Tensor], shares: Mapping[str, float], stack: Stack) -> dict[str, Tensor]:
    """Stack -> squared singular values of its linears added up by rank: what follows a rank is what the stack loses.

    Args:
        energies: linear -> squared singular values, descending, per token that it sees.
        shares: linear -> of the text's tokens, the share that it sees; 1 where it is not there.
        stack: of a linear.
    """
    found: dict[str, Tensor] = {}
    for name, energy in energies.items():
        part = energy * shares.get(name, 1.0)
        found[stack(name)] = found[stack(name)] + part if stack(name) in found else part
    return found
