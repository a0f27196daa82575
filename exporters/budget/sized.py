"""A recipe with a size, a model and a format -> the recipe with a form for every matrix, and the best plain one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ...converter.budget.forms import Candidate, Form
from ...converter.checkpoint.layouts import break_even
from ...converter.core.errors import UsageError
from ...converter.core.progress import Progress
from ...converter.core.recipe import Recipe
from ...converter.model.source import Source
from ...converter.planning.experts_check import check_experts
from ...converter.planning.preparation import dense_statistics
from ...converter.planning.ranks import kept_dense
from ...converter.statistics.calibration import Tokens
from ...converter.storage.byte_size import NO_LIMITS, MemoryLimits
from ..target import ExportRequest
from .costs import gathered_costs
from .format import FileSize, Format
from .linears import RANK_STEP, factor_forms
from .search import Found, budget_of, model_candidates, search

CHECKPOINT = "checkpoint"
"""The folder that the main command exports from: the file calls itself that."""


@dataclass(frozen=True)
class Plain:
    """One type for all linears, as an ordinary export has it, and one for what else there is.

    Attributes:
        found: what it comes to.
        type: of the linears; rows that do not fit it have its fallback.
        rest: of embedding and head.
    """

    found: Found
    type: str
    rest: str


@dataclass(frozen=True)
class Sized:
    """What a size is spent on.

    Attributes:
        budget: bytes.
        found: the choice.
        plain: uniform types of no more bytes, the best by prediction; None where none is that small.
        held_out: calibration windows that nothing is fitted on, (N, T).
    """

    budget: int
    found: Found
    plain: Plain | None
    held_out: Tokens


def sized(
    recipe: Recipe,
    source: Source,
    statistics: Path,
    request: ExportRequest,
    *,
    name: str = CHECKPOINT,
    device: str,
    limits: MemoryLimits = NO_LIMITS,
    progress: Progress,
) -> Sized:
    """Choose what a recipe's size is best spent on, for a file of one format.

    Args:
        recipe: with a size.
        source: its model.
        statistics: a folder where statistics of the dense model, and what its matrices cost, are kept.
        request: the export that the size is of, see `ExportTarget.sized_request`.
        name: of the folder that the file will be exported from.
        device: "auto", "cpu", "cuda".
        limits: see `pipeline.compress`.
        progress: receives stages.

    Raises:
        UsageError: nothing is that small; names the smallest.
        InputError, ResourceError: as the stages say.
    """
    check_experts(recipe, source.family)
    reader = source.reader()
    format = request.budget(progress)
    size, budget = format.size(reader, name, recipe.method), budget_of(recipe, reader)
    check_possible(recipe, source, format, size, budget)
    with dense_statistics(
        recipe,
        statistics,
        source=source,
        device=device,
        limits=limits,
        progress=progress,
    ) as (blocks, calibration, store):
        costs = gathered_costs(blocks, torch.from_numpy(calibration.windows), store, format, progress)
        kept = kept_dense(recipe.keep_dense, list(blocks.linear_shapes()), blocks.family)
    candidates = model_candidates(costs, source, format, size, kept)
    found = search(recipe, budget, candidates, size)
    plain = best_plain(recipe, budget, candidates, format, size, _outside(source))
    return Sized(budget, found, plain, calibration.held_out)


def planned(
    recipe: Recipe,
    source: Source,
    statistics: Path | None,
    request: ExportRequest,
    *,
    device: str,
    limits: MemoryLimits = NO_LIMITS,
    progress: Progress,
) -> Sized:
    """What `sized` chooses, for a look.

    Args:
        recipe: with a size.
        source: its model.
        statistics: a folder where they are kept, for the next size; a temporary one by default.
        request: the export that the size is of.
        device: "auto", "cpu", "cuda".
        limits: memory that the process may take.
        progress: receives stages.
    """
    with TemporaryDirectory(prefix="lowrank-statistics-") as temporary:
        return sized(
            recipe,
            source,
            statistics or Path(temporary),
            request,
            device=device,
            limits=limits,
            progress=progress,
        )


def best_plain(
    recipe: Recipe,
    budget: int,
    candidates: Mapping[str, list[Candidate]],
    format: Format,
    size: FileSize,
    outside: Collection[str],
) -> Plain | None:
    """The best by prediction of one type for all linears, and one for what else there is; None where none fits.

    A limit of operations, which no dense file meets, is left aside: the size alone is compared.

    Args:
        recipe: with a size.
        budget: bytes of the file.
        candidates: module -> its forms.
        format, size: of the file.
        outside: embedding and head.
    """
    dense = {
        module: {found.form.types[0]: found for found in forms if found.form.rank is None}
        for module, forms in candidates.items()
    }
    best: Plain | None = None
    recipe = recipe.model_copy(update={"max_prefill_flops": None})
    for linears, rest in format.plain:
        chosen = [_of_type(found, rest if module in outside else linears, format) for module, found in dense.items()]
        options = {module: [found] for module, found in zip(dense, chosen, strict=True) if found is not None}
        if len(options) < len(dense):
            continue
        try:
            found = search(recipe, budget, options, size)
        except UsageError:
            continue
        if best is None or found.loss < best.found.loss:
            best = Plain(found, linears, rest)
    return best


def _of_type(forms: Mapping[str, Candidate], type: str, format: Format) -> Candidate | None:
    """The form in a type; where rows do not fit it, in its fallback. None where that is not among the forms."""
    wanted: str | None = type
    while wanted is not None and wanted not in forms:
        wanted = format.fallback(wanted)
    return None if wanted is None else forms[wanted]


def check_possible(recipe: Recipe, source: Source, format: Format, size: FileSize, budget: int) -> None:
    """Refuse, before any work, a budget that nothing meets.

    Raises:
        UsageError: names the smallest file there is.
    """
    shapes = _matrices(source)
    kept = kept_dense(recipe.keep_dense, [name for name in shapes if name not in _outside(source)], source.family)
    candidates: dict[str, list[Candidate]] = {}
    for name, shape in shapes.items():
        types = [type for type in format.types if format.fits(type, shape[1])]
        block = name not in _outside(source)
        found = [_possible(shape, format.bytes(shape, type), Form((type,)), block) for type in types]
        if name not in kept and block and break_even("two-factor", *shape) > RANK_STEP:
            beyond, factors = size.overhead(name), factor_forms(shape, RANK_STEP, format.factor_types, format)
            found += [_possible(shape, bytes + beyond, form, block) for form, bytes in factors]
        candidates[name] = found
    search(recipe, budget, candidates, size)


def _possible(shape: tuple[int, int], bytes: int, form: Form, block: bool) -> Candidate:
    """A form whose loss nobody knows yet; a prompt runs through the linears of the blocks alone."""
    return Candidate(bytes, 0.0, form, form.flops(*shape) if block else 0)


def _outside(source: Source) -> tuple[str, str]:
    return source.family.embedding, source.family.head


def _matrices(source: Source) -> dict[str, tuple[int, int]]:
    """Module -> shape of every matrix that a file stores, in the order of the choice."""
    reader, tied = source.reader(), bool(source.reader().config.get("tie_word_embeddings"))
    found = {
        name.removesuffix(".weight"): shape
        for name in reader.names
        if len(shape := reader.shape(name)) == 2 and not (tied and name == source.family.head + ".weight")
    }
    return {name: (shape[0], shape[1]) for name, shape in found.items()}
