"""A recipe with a size -> the same recipe with a form for every matrix: what the size is best spent on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ...converter.budget.choice import choose, smallest
from ...converter.budget.forms import Candidate, Form
from ...converter.budget.two_limits import choose_within, fewest_flops, total_flops
from ...converter.checkpoint.reader import CheckpointReader
from ...converter.core.errors import UsageError
from ...converter.core.recipe import Recipe
from ...converter.model.source import Source
from .costs import Costs
from .format import FileSize, Format
from .linears import linear_candidates

ROUNDS = 8  # of a choice whose own description takes bytes: two are the rule


@dataclass(frozen=True)
class Found:
    """What was chosen.

    Attributes:
        recipe: with the choice.
        bytes: of the file, exactly.
        loss: predicted, in nats per token.
        losses: module -> its part of that.
        flops: that the blocks' linears take per token of a prompt, as a share of the dense model's.
    """

    recipe: Recipe
    bytes: int
    loss: float
    losses: Mapping[str, float]
    flops: float


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


def search(recipe: Recipe, budget: int, candidates: Mapping[str, list[Candidate]], size: FileSize) -> Found:
    """Spend a budget.

    Args:
        recipe: with a size.
        budget: bytes of the whole file.
        candidates: module -> its forms, for every matrix of the model.
        size: of the file.

    Raises:
        UsageError: nothing is that small, or nothing of that size takes as few operations; names the smallest.
    """
    modules, asked = list(candidates), _asked(recipe)
    options = [candidates[module] for module in modules]
    dense = sum(max(candidate.flops for candidate in found) for found in options)
    most = None if recipe.max_prefill_flops is None else int(recipe.max_prefill_flops * dense)

    def made(chosen: list[Candidate]) -> tuple[Recipe, int]:
        forms = {module: candidate.form for module, candidate in zip(modules, chosen, strict=True)}
        named = recipe.model_copy(update={"choice": {module: str(form) for module, form in forms.items()}})
        return named, size(forms, named.to_yaml())

    chosen = [min(found, key=lambda candidate: (candidate.bytes, candidate.loss)) for found in options]
    named, bytes = made(chosen)
    if bytes > budget:
        least = bytes
        if recipe.max_bytes is not None:  # the file says what was asked for: a larger number takes more digits
            recipe = recipe.model_copy(update={"max_bytes": least})
            least = max(least, made(chosen)[1])
        raise UsageError(f"{asked}: the smallest file of this model takes {least} bytes ({least / 1e6:.1f} MB)")
    matrices = budget - (bytes - smallest(options))
    for _ in range(ROUNDS):
        try:
            tried = choose(options, matrices) if most is None else choose_within(options, matrices, most)
        except ValueError:
            share = total_flops(fewest_flops(options, matrices)) / dense
            raise UsageError(
                f"max_prefill_flops {recipe.max_prefill_flops}: at {asked} the linears of this model take at least "
                f"{share:.3f} of the dense model's operations"
            ) from None
        described, taken = made(tried)
        if taken <= budget:
            chosen, named, bytes = tried, described, taken
            break
        matrices -= taken - budget
    losses = {module: candidate.loss for module, candidate in zip(modules, chosen, strict=True)}
    return Found(named, bytes, sum(losses.values()), losses, total_flops(chosen) / dense)


def _asked(recipe: Recipe) -> str:
    if recipe.max_bytes is not None:
        return f"max_bytes {recipe.max_bytes}"
    return f"bits_per_weight {recipe.bits_per_weight}"


def model_candidates(
    costs: Costs,
    source: Source,
    format: Format,
    size: FileSize,
    kept: frozenset[str] = frozenset(),
) -> dict[str, list[Candidate]]:
    """Module -> its forms, for every matrix of a model.

    Args:
        costs: of the model.
        source: the model.
        format: of the file.
        size: of the file.
        kept: linears that are not to be factored.
    """
    family = source.family
    candidates = {
        name: linear_candidates(found, costs.relative, format, overhead=size.overhead(name), kept_dense=name in kept)
        for name, found in costs.linears.items()
    }
    rows, width = source.reader().shape(family.embedding + ".weight")
    modules = {"embedding": family.embedding, "head": family.head}
    for part, losses in costs.vocabulary.items():
        candidates[modules[part]] = [
            Candidate(format.bytes((rows, width), type), loss, Form((type,))) for type, loss in losses.items()
        ]
    return candidates
