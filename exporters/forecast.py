"""Rank plan -> bytes of every export, before any work is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..converter.allocation.plan import RankPlan
from ..converter.allocation.rank_multiple import DEFAULT_MULTIPLE
from ..converter.checkpoint.layouts import PERM_SUFFIX
from ..converter.checkpoint.reader import CheckpointReader
from ..converter.core.errors import InputError
from ..converter.core.recipe import Recipe
from ..converter.families.table import family_of
from ..converter.model.source import Source
from ..converter.planning.ranks import rank_multiple_for
from .registry import TARGETS
from .target import ExportRequest, Forecast


def with_rank_multiple(recipe: Recipe, source: Source, exports: Sequence[ExportRequest]) -> Recipe:
    """The recipe with a rank multiple that suits the types it will be exported in, where it leaves the choice.

    Args:
        recipe: as asked.
        source: its model.
        exports: what it will be exported as.
    """
    if recipe.choice:  # says its ranks
        return recipe
    multiple = rank_multiple_for(recipe, source, max((request.row_multiple() for request in exports), default=1))
    return recipe if multiple == DEFAULT_MULTIPLE else recipe.model_copy(update={"rank_multiple": multiple})


@dataclass(frozen=True)
class ExportForecast:
    """What one export takes, of the factored model and of the dense one."""

    factored: Forecast
    dense: Forecast


def forecast_exports(reader: CheckpointReader, plan: RankPlan) -> dict[str, ExportForecast]:
    """A forecast per type of every format that can hold the model.

    Args:
        reader: the dense checkpoint.
        plan: ranks of its linears.

    Returns:
        "gguf q8_0" and so on -> its forecast.
    """
    dense = {name: reader.shape(name) for name in _stored_names(reader)}
    in_order = _without_permutation(reader)
    factored = {name: shape for name, shape in plan.shapes(dense).items() if not name.endswith(in_order)}
    return {
        f"{request.format} {request.quantization}": ExportForecast(
            request.forecast(factored, reader.config), request.forecast(dense, reader.config)
        )
        for request in _possible(reader.config)
    }


def bytes_json(forecasts: Mapping[str, ExportForecast]) -> dict[str, dict[str, int]]:
    """Predicted bytes per export, factored and dense, JSON-ready."""
    return {name: {"factored": one.factored.bytes, "dense": one.dense.bytes} for name, one in forecasts.items()}


def storage_json(forecasts: Mapping[str, ExportForecast]) -> dict[str, dict[str, Any]]:
    """How the factored model's exports are stored, JSON-ready."""
    return {name: one.factored.storage() for name, one in forecasts.items()}


def _possible(config: Mapping[str, Any]) -> Iterator[ExportRequest]:
    """One request per type of the formats that can hold this kind of model."""
    for target in TARGETS.values():
        requests = [target.request(type) for type in target.types()]
        try:
            requests[0].check_model(config)
        except InputError:
            continue
        yield from requests


def _stored_names(reader: CheckpointReader) -> list[str]:
    """Names of the tensors that exports store: a tied embedding once."""
    tied = reader.config.get("tie_word_embeddings")
    return sorted(name for name in reader.names if not (tied and name == "lm_head.weight"))


def _without_permutation(reader: CheckpointReader) -> tuple[str, ...]:
    """Endings of the permutations that the pivot layout does without: linears that share an order with each other."""
    shared_orders = family_of(reader.config, str(reader.path)).shared_orders
    return tuple(f".{name}{PERM_SUFFIX}" for shared in shared_orders for name in shared.producers)
