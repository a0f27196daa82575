"""The calibration windows of a job: drawn once, cut into what a process runs at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError, naming
from ..core.progress import Progress
from ..core.recipe import Recipe
from ..distributed.workers import ALONE, Workers
from ..model.blocks import BlockSource
from ..model.loading import load_tokenizer
from ..model.source import Source
from ..planning.model_shape import WindowSizes
from ..texts.pairs import names_pairs
from .calibration import Calibration, hold_out
from .mixture import draw
from .pictures import calibrate_on_pairs
from .sampling import Sampler

CHUNK_TOKENS = 4096  # tokens per forward: large enough for the matmuls, small enough for memory


def draw_windows(
    key: Literal["calibration", "update_calibration"],
    recipe: Recipe,
    source: Source,
    blocks: BlockSource,
    progress: Progress,
    workers: Workers,
) -> Calibration:
    """Windows of the text that the recipe names under a key; the writer alone reads it.

    Raises:
        InputError: the text does not give them, or the model attends over fewer tokens.
    """
    text, option = str(getattr(recipe, key)), "--" + key.replace("_", "-")
    found = workers.broadcast_object(lambda: _drawn(text, option, recipe, source, blocks, progress))
    if found.features is not None:
        blocks.see(torch.from_numpy(found.features))
    return found


def _drawn(
    text: str, option: str, recipe: Recipe, source: Source, blocks: BlockSource, progress: Progress
) -> Calibration:
    sample = Sampler(source.path, str(blocks.device), blocks.dtype, progress)
    rows = int(blocks.reader.config["vocab_size"])
    sizes = {
        "windows": recipe.windows,
        "length": recipe.window_length,
        "held_out": recipe.held_out,
        "seed": recipe.seed,
    }
    with naming(option):
        if blocks.reader.around is not None and names_pairs(text):
            first = rows + blocks.seen
            drawn = calibrate_on_pairs(text, blocks.reader, first=first, device=blocks.device, **sizes)
        else:
            drawn = draw(text, load_tokenizer(source.path), sample, rows=rows, **sizes)
    if drawn.drawn_from is not None:
        progress.note(drawn.drawn_from.said(text))
    if drawn.windows.shape[1] > blocks.window_limit:
        raise InputError(
            f"{recipe.model}: attends over {blocks.window_limit} tokens, fewer than the window length "
            f"{drawn.windows.shape[1]}; use a smaller --window-length"
        )
    # what tells a refinement when to stop must not have been fitted in closed form either
    return drawn if recipe.refine == "none" else hold_out(drawn)


def window_chunks(recipe: Recipe, calibration: Calibration, workers: Workers = ALONE) -> list[Tensor]:
    """This process's shuffled calibration windows in chunks: buckets for stack-of-batch, which stay whole, else as many
    as memory likes."""
    windows = calibration.windows
    order = np.random.default_rng(recipe.seed).permutation(len(windows)).tolist()
    size = window_chunk(recipe, *windows.shape)
    if recipe.calibration_reduction == "stack-of-batch":
        chosen = workers.part(_cut(order, size))
    else:
        chosen = _cut(workers.part(order), size)
    return [torch.from_numpy(windows[numbers]) for numbers in chosen]


def _cut(numbers: Sequence[int], size: int) -> Sequence[Sequence[int]]:
    return [numbers[i : i + size] for i in range(0, len(numbers), size)]


def window_chunk(recipe: Recipe, windows: int, length: int) -> int:
    """Windows per chunk."""
    if recipe.calibration_reduction == "stack-of-batch":
        return -(-windows // min(recipe.buckets, windows))
    return max(1, CHUNK_TOKENS // length)


def held_out_chunks(calibration: Calibration, workers: Workers) -> list[Tensor]:
    """This process's held-out windows in one chunk; those who have fewer others take more of these."""
    chosen = workers.part(range(len(calibration.held_out)), larger_first=True)
    return [torch.from_numpy(calibration.held_out[list(chosen)])] if chosen else []


def window_sizes(recipe: Recipe, calibration: Calibration | None, workers: Workers) -> WindowSizes:
    """The windows of a process that has the most."""
    if calibration is None:
        return WindowSizes(0, 0, 1, 1, workers.count)
    fitted, length = calibration.windows.shape
    chunk = window_chunk(recipe, fitted, length)
    whole = chunk if recipe.calibration_reduction == "stack-of-batch" else 1
    shares = [-(-count // workers.count) for count in (-(-fitted // whole), len(calibration.held_out))]
    return WindowSizes(min(fitted, shares[0] * whole), shares[1], length, chunk, workers.count)
