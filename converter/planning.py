"""Recipe + source -> rank plan: everything that is decided before any work is done."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from .allocation.adacr import adacr, normalise, similarity
from .allocation.plan import LinearShape, RankPlan
from .allocation.rounding import round_ranks
from .allocation.uniform import uniform
from .blocks import BlockSource
from .calibration import SELF, Calibration, calibrate, sample_from_model
from .checkpoint import load
from .device import DTYPES, pick_device
from .errors import InputError, UsageError
from .methods import METHODS, Method
from .progress import Progress
from .recipe import Recipe, nearest
from .source import Source, open_source

IMPORTANCE_WINDOWS = 4  # similarity is a mean over tokens: four windows of 1024 settle it


@dataclass(frozen=True)
class Job:
    """A recipe with everything it names found and decided.

    Attributes:
        recipe: as asked.
        method: its row of the method table.
        source: the dense model.
        blocks: its weights, block by block.
        calibration: token windows; None for a method that needs none.
        plan: ranks of every linear.
    """

    recipe: Recipe
    method: Method
    source: Source
    blocks: BlockSource
    calibration: Calibration | None
    plan: RankPlan


def prepare(recipe: Recipe, *, device: str, progress: Progress) -> Job:
    """Open the source, draw the calibration windows, allocate ranks.

    Raises:
        UsageError, InputError, ResourceError: as the stages say.
    """
    method = METHODS[recipe.method]
    source = open_source(recipe.model, progress)
    blocks = BlockSource(source.reader(), source.family, pick_device(device), DTYPES[recipe.dtype])
    calibration = _calibration(recipe, source, blocks, progress) if method.needs_calibration else None
    return Job(recipe, method, source, blocks, calibration, _allocate(recipe, method, blocks, calibration, progress))


def _calibration(recipe: Recipe, source: Source, blocks: BlockSource, progress: Progress) -> Calibration:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source.path), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{source.path}: no usable tokenizer ({str(error).splitlines()[0]})") from None
    options = {
        "windows": recipe.windows,
        "length": recipe.window_length,
        "held_out": recipe.held_out,
        "seed": recipe.seed,
    }
    if recipe.calibration == SELF:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        model = load(source.path, device=str(blocks.device), dtype=blocks.dtype)
        drawn = sample_from_model(model, start=int(start or 0), progress=progress, **options)
    else:
        drawn = calibrate(recipe.calibration, tokenizer, **options)
    if drawn.windows.shape[1] > blocks.window_limit:
        raise InputError(
            f"{recipe.model}: attends over {blocks.window_limit} tokens, fewer than the window length "
            f"{drawn.windows.shape[1]}; use a smaller --window-length"
        )
    return drawn


def _allocate(
    recipe: Recipe, method: Method, blocks: BlockSource, calibration: Calibration | None, progress: Progress
) -> RankPlan:
    per_block = len(blocks.family.linears)
    shapes = [
        LinearShape(name, index // per_block, *shape, recipe.layout)
        for index, (name, shape) in enumerate(blocks.linear_shapes().items())
    ]
    keep_dense = _excluded(recipe.keep_dense, [shape.name for shape in shapes])
    importance: tuple[float, ...] = ()
    if method.allocation == "adacr":
        assert calibration is not None
        importance = normalise(block_similarities(blocks, calibration, recipe.similarity, progress))
        counted = [shape for shape in shapes if shape.name not in keep_dense]
        per_name = dict(
            zip(
                [shape.name for shape in counted],
                adacr(counted, importance, recipe.retention, recipe.min_retention),
                strict=True,
            )
        )
        wanted = [per_name.get(shape.name, 1.0) for shape in shapes]
    else:
        wanted = uniform(shapes, recipe.retention)
    return round_ranks(
        shapes,
        wanted,
        target=recipe.retention,
        rank_multiple=recipe.rank_multiple,
        keep_dense=keep_dense,
        tolerance=method.tolerance,
        importance=importance,
    )


def _excluded(patterns: tuple[str, ...], names: list[str]) -> frozenset[str]:
    excluded: set[str] = set()
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"*{pattern}")]
        if not matched:
            raise UsageError(f"--keep-dense {pattern!r}: matches no linear{nearest(pattern, names[:7])}")
        excluded.update(matched)
    return frozenset(excluded)


@torch.no_grad()
def block_similarities(
    blocks: BlockSource, calibration: Calibration, reading: str, progress: Progress
) -> tuple[float, ...]:
    """Similarity of input and output of every block of the dense model, one window at a time."""
    windows = torch.tensor(calibration.windows[:IMPORTANCE_WINDOWS])
    streams = blocks.embed([window[None] for window in windows])
    result = []
    with progress.stage("block importance", blocks.block_count) as advance:
        for index in range(blocks.block_count):
            block = blocks.block(index)
            outputs = [blocks.run(block, x) for x in streams]
            values = [similarity(x, y, reading) for x, y in zip(streams, outputs, strict=True)]
            result.append(sum(values) / len(values))
            streams = outputs
            advance(1)
    return tuple(result)
