"""A recipe with a size -> the same recipe with a form for every matrix: what the size is best spent on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

from ...converter.budget.choice import choose, smallest
from ...converter.budget.forms import Candidate, Form
from ...converter.checkpoint.reader import CheckpointReader
from ...converter.core.errors import UsageError
from ...converter.core.recipe import Recipe
from ...converter.families.family import Family
from .costs import Costs
from .linears import LinearCosts, linear_candidates

ROUNDS = 8  # of a choice whose own description takes bytes: two are the rule


class SizeOf(Protocol):
    """Exact bytes of a file."""

    def __call__(self, forms: Mapping[str, Form], recipe_text: str) -> int:
        """See `gguf_size.GgufSize`."""


@dataclass(frozen=True)
class Found:
    """What was chosen.

    Attributes:
        recipe: with the choice.
        bytes: of the file, exactly.
        loss: predicted, in nats per token.
        losses: module -> its part of that.
    """

    recipe: Recipe
    bytes: int
    loss: float
    losses: Mapping[str, float]


def budget_of(recipe: Recipe, reader: CheckpointReader) -> int:
    """The bytes that a recipe's size allows.

    Args:
        recipe: with a size.
        reader: the dense model; its weights count once where they are tied.
    """
    if recipe.max_bytes is not None:
        return recipe.max_bytes
    assert recipe.bits_per_weight is not None
    return int(recipe.bits_per_weight * weights_of(reader) / 8)


def weights_of(reader: CheckpointReader) -> int:
    """Weights of a model, tied ones once."""
    tied = bool(reader.config.get("tie_word_embeddings"))
    return sum(prod(reader.shape(name)) for name in reader.names if not (tied and name == "lm_head.weight"))


def search(recipe: Recipe, budget: int, candidates: Mapping[str, list[Candidate]], size: SizeOf) -> Found:
    """Spend a budget.

    Args:
        recipe: with a size.
        budget: bytes of the whole file.
        candidates: module -> its forms, for every matrix of the model.
        size: of the file.

    Raises:
        UsageError: nothing is that small; names the smallest.
    """
    modules = list(candidates)
    options = [candidates[module] for module in modules]

    def made(chosen: list[Candidate]) -> tuple[Recipe, int]:
        forms = {module: candidate.form for module, candidate in zip(modules, chosen, strict=True)}
        named = recipe.model_copy(update={"choice": {module: str(form) for module, form in forms.items()}})
        return named, size(forms, named.to_yaml())

    chosen = [min(found, key=lambda candidate: (candidate.bytes, candidate.loss)) for found in options]
    named, bytes = made(chosen)
    if bytes > budget:
        raise UsageError(
            f"{_asked(recipe)}: the smallest file of this model takes {bytes} bytes ({bytes / 1e6:.1f} MB)"
        )
    matrices = budget - (bytes - smallest(options))
    for _ in range(ROUNDS):
        tried = choose(options, matrices)
        described, taken = made(tried)
        if taken <= budget:
            chosen, named, bytes = tried, described, taken
            break
        matrices -= taken - budget
    losses = {module: candidate.loss for module, candidate in zip(modules, chosen, strict=True)}
    return Found(named, bytes, sum(losses.values()), losses)


def _asked(recipe: Recipe) -> str:
    if recipe.max_bytes is not None:
        return f"max_bytes {recipe.max_bytes}"
    return f"bits_per_weight {recipe.bits_per_weight}"


def model_candidates(
    costs: Costs,
    family: Family,
    vocabulary: tuple[int, int],
    fits: Callable[[str, int], bool],
    bytes: Callable[[tuple[int, int], str], int],
    *,
    overhead: Callable[[str], int] = lambda module: 0,
    kept_dense: frozenset[str] = frozenset(),
    dense_only: bool = False,
) -> dict[str, list[Candidate]]:
    """Module -> its forms, for every matrix of a model.

    Args:
        costs: of the model.
        family: names embedding and head.
        vocabulary: shape of both.
        fits, bytes: of the format, see `linear_candidates`.
        overhead: linear -> bytes that its becoming two factors takes elsewhere in the file.
        kept_dense: linears that the user excludes from factoring.
        dense_only: whether all are.
    """

    def of_linear(name: str, found: LinearCosts) -> list[Candidate]:
        dense = dense_only or name in kept_dense
        beyond = overhead(name)
        return [
            c if c.form.rank is None else Candidate(c.bytes + beyond, c.loss, c.form)
            for c in linear_candidates(found, costs.relative, fits, bytes, dense)
        ]

    candidates = {name: of_linear(name, found) for name, found in costs.linears.items()}
    modules = {"embedding": family.embedding, "head": family.head}
    for part, losses in costs.vocabulary.items():
        candidates[modules[part]] = [
            Candidate(bytes(vocabulary, type), loss, Form((type,))) for type, loss in losses.items()
        ]
    return candidates
