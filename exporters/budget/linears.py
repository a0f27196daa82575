"""One linear -> what each of its forms costs: all that a choice needs to know of it, whatever the budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...converter.budget.forms import Candidate, Form
from ...converter.checkpoint import layouts
from ...converter.factors.factorization import factor
from ...converter.factors.whitening import OutputMetric, Whitener
from .format import Format
from .rounding_loss import FactorUnits, column_weights, dense_loss, factor_units, truncations

RANK_STEP = 32
ROUNDED_ROWS = 192  # of a linear, spread evenly: they tell how large errors are
MEASURED_SHARES = (0.3, 0.6, 0.9)  # of break-even: ranks whose factors are looked at; between them costs are smooth

RoundPlainly = Callable[[Tensor, str, Tensor], Tensor]
"""Weights (m, n), type, mean square of each input (n,) -> the weights as plainly rounded, (m, n)."""


@dataclass(frozen=True)
class LinearCosts:
    """Predicted losses of a linear's forms, in nats per token.

    Attributes:
        shape: (m, n).
        dense: type -> loss of the dense matrix in it.
        ranks: multiples of 32 below break-even, rising.
        truncated: loss of the truncation to each.
        u, v: loss per relative rounding error of U and V^T at each rank.
    """

    shape: tuple[int, int]
    dense: Mapping[str, float]
    ranks: Sequence[int]
    truncated: Sequence[float]
    u: Sequence[float]
    v: Sequence[float]

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return asdict(self)


def linear_costs(
    weight: Tensor,
    inputs: Whitener,
    outputs: OutputMetric,
    types: Mapping[str, int],
    round_plainly: RoundPlainly,
    *,
    factored: bool = True,
    seed: int = 0,
) -> LinearCosts:
    """Measure what can be had cheaply: plain rounding in every type, the spectrum, factors of three ranks.

    Args:
        weight: W (m, n).
        inputs: Sigma.
        outputs: G.
        types: those whose blocks the rows of W fit, and how many columns each rounds together.
        round_plainly: rounds a matrix to the nearest.
        factored: whether it may become two factors.
        seed: of the rotation of the factors.
    """
    weight, moment, gradient = weight.double(), inputs.moment, outputs.moment
    m, n = weight.shape
    together = {width: column_weights(moment, width) for width in {1, *types.values()}}
    columns, diagonal = together[1], gradient.diagonal()
    importance = moment.diagonal().float()
    seen = torch.linspace(0, m - 1, min(m, ROUNDED_ROWS), device=weight.device).long()
    sample = weight[seen]
    # errors are in proportion to the weights: rows that are not rounded cost what their size says
    others = dense_loss(weight, diagonal, columns) / max(dense_loss(sample, diagonal[seen], columns), 1e-300)
    dense = {
        type: others
        * dense_loss(sample - round_plainly(sample.float(), type, importance), diagonal[seen], together[width])
        for type, width in types.items()
    }
    ranks = list(range(RANK_STEP, int(np.ceil(layouts.break_even("two-factor", m, n))), RANK_STEP)) if factored else []
    if not ranks:
        return LinearCosts((m, n), dense, (), (), (), ())
    full, energies = factor(weight, min(m, n), inputs, outputs)
    whole = truncations(full.u, full.v, moment)
    found = [factor_units(whole, rank, moment, gradient, columns, seed) for rank in _measured(ranks)]
    tails = [float(energies[rank:].sum()) / 2 for rank in ranks]
    return LinearCosts((m, n), dense, ranks, tails, *_between(ranks, _measured(ranks), found))


def _measured(ranks: Sequence[int]) -> list[int]:
    """Those at `MEASURED_SHARES` of the largest."""
    wanted = [round(share * len(ranks)) - 1 for share in MEASURED_SHARES]
    return [ranks[i] for i in sorted({min(max(index, 0), len(ranks) - 1) for index in wanted})]


def _between(
    ranks: Sequence[int], measured: Sequence[int], found: Sequence[FactorUnits]
) -> tuple[list[float], list[float]]:
    """Costs at every rank, between logarithms of those measured."""

    def curve(values: Sequence[float]) -> list[float]:
        known = np.log(np.maximum(values, 1e-300))
        return [float(x) for x in np.exp(np.interp(np.log(ranks), np.log(measured), known))]

    return curve([units.u for units in found]), curve([units.v for units in found])


def linear_candidates(
    costs: LinearCosts, relative: Mapping[str, float], format: Format, *, overhead: int = 0, kept_dense: bool = False
) -> list[Candidate]:
    """Every form of a linear with its bytes and loss.

    Args:
        costs: of the linear.
        relative: type of a factor -> its `normal_error`.
        format: of the file.
        overhead: bytes that two factors take beside their matrices.
        kept_dense: whether factors are excluded.
    """
    m, n = costs.shape
    found = [
        Candidate(format.bytes((m, n), type), loss, form := Form((type,)), form.flops(m, n))
        for type, loss in costs.dense.items()
    ]
    if kept_dense:
        return found
    for rank, truncated, u, v in zip(costs.ranks, costs.truncated, costs.u, costs.v, strict=True):
        units = FactorUnits(u, v)
        for form, bytes in factor_forms((m, n), rank, list(relative), format):
            loss = truncated + units.loss(*(relative[type] for type in form.types))
            found.append(Candidate(bytes + overhead, loss, form, form.flops(m, n)))
    return found


def factor_forms(shape: tuple[int, int], rank: int, types: Sequence[str], format: Format) -> Iterator[tuple[Form, int]]:
    """Two factors of one rank in every pair of types that fit and are worth their time, with the bytes of both.

    Args:
        shape: (m, n) of the dense matrix.
        rank: of the factors.
        types: of either.
        format: of the file.
    """
    m, n = shape
    for pair in product(types, types):
        form = Form(pair, rank)
        if format.fits(pair[0], rank) and format.fits(pair[1], n) and format.factors_pay(shape, form):
            yield form, format.bytes((m, rank), pair[0]) + format.bytes((rank, n), pair[1])


def normal_error(type: str, round_plainly: RoundPlainly, seed: int = 0) -> float:
    """Mean squared error of plain rounding relative to the mean square of normally distributed weights.

    Args:
        type: a storage type.
        round_plainly: rounds a matrix to the nearest.
        seed: of the weights.
    """
    weights = torch.randn(256, 512, generator=torch.Generator().manual_seed(seed))
    rounded = round_plainly(weights, type, torch.ones(512))
    return float((weights - rounded).square().mean() / weights.square().mean())
