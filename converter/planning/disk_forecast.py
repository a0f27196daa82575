"""The disk that a job takes, by arithmetic, held against what is free there before any work."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path

from ..checkpoint import layouts
from ..core.errors import ResourceError
from ..core.recipe import Recipe
from ..machine.device import DTYPES
from ..model.source import Source
from .memory_plan import gigabytes
from .ranks import kept_dense

Shapes = Mapping[str, tuple[int, ...]]


def factored_shapes(recipe: Recipe, source: Source) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of the checkpoint that a recipe makes, if every linear keeps the recipe's retention.

    Of a size that nothing is chosen for yet, the smallest: factors of rank 1.
    """
    reader, family = source.reader(), source.family
    shapes = {name: reader.shape(name) for name in reader.names}
    linears = [
        family.linear_name(block, linear)
        for block in range(int(reader.config["num_hidden_layers"]))
        for linear in family.linears
    ]
    kept, unsettled = kept_dense(recipe.keep_dense, linears, family), recipe.sized and not recipe.choice
    for name in linears:
        m, n = reader.shape(name + ".weight")
        rank = 1 if unsettled else max(1, int(layouts.rank_for(recipe.layout, m, n, recipe.retention)))
        if recipe.choice:
            form = recipe.forms.get(name)
            rank = (form and form.rank) or 0
        if name not in kept and 0 < rank < layouts.break_even(recipe.layout, m, n):
            del shapes[name + ".weight"]
            shapes |= layouts.shapes(recipe.layout, name, m, n, rank)
    return shapes


def checkpoint_bytes(recipe: Recipe, shapes: Shapes) -> int:
    """Of a checkpoint's tensors in the recipe's dtype."""
    return DTYPES[recipe.dtype].itemsize * sum(map(prod, shapes.values()))


def compression_bytes(recipe: Recipe, source: Source) -> int:
    """What a compression has on the disk at its end: the checkpoint, and every block once more in the journal."""
    shapes = factored_shapes(recipe, source)
    inside = {name: shape for name, shape in shapes.items() if name.startswith(source.family.blocks + ".")}
    beside = source.reader().beside_bytes
    return checkpoint_bytes(recipe, shapes) + checkpoint_bytes(recipe, inside) + beside


def bytes_at(*places: Path) -> int:
    """What lies at some places already, in files of whatever depth."""
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def check_disk(out: Path, needed: int, what: str) -> None:
    """Refuse a job that its disk has no room for.

    Args:
        out: a file or folder on that disk, which need not be there yet.
        needed: bytes that come on top of what is there.
        what: takes them, for the error.

    Raises:
        ResourceError: fewer are free.
    """
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ResourceError(
            f"{out}: {what} take about {gigabytes(needed)}, and {gigabytes(free)} are free on that disk; free some, or "
            "choose another --out"
        )
