"""Which multiple ranks are rounded to, where the recipe does not say: the target's, if that costs little."""

from __future__ import annotations

from collections.abc import Sequence

from .plan import LinearShape

DEFAULT_MULTIPLE = 32  # what the small blocks (Q8_0, Q4_0) of GGUF and the row loops of every runtime want
STEPS = 4  # multiples that a wanted rank must hold for rounding to cost little: it then moves by an eighth at most
SHARE = 0.9  # of the parameters must lie in linears that do


def choose_rank_multiple(shapes: Sequence[LinearShape], retention: float, row_multiple: int) -> int:
    """The multiple of the target's rows where the model is wide enough, else the default.

    Rounding to a multiple moves a rank by half of it at most. It is taken where linears with at least 90% of the
    parameters want a rank of four multiples or more at the target retention, and every other linear at least one.

    Args:
        shapes: the linears that are compressed.
        retention: target over all of them.
        row_multiple: what rows of the target's storage types are multiples of (256 for K-quants).
    """
    if row_multiple <= DEFAULT_MULTIPLE or not shapes:
        return DEFAULT_MULTIPLE
    ranks = [shape.rank_for(retention) for shape in shapes]
    wide = sum(s.parameters for s, rank in zip(shapes, ranks, strict=True) if rank >= STEPS * row_multiple)
    fits = min(ranks) >= row_multiple and wide >= SHARE * sum(shape.parameters for shape in shapes)
    return row_multiple if fits else DEFAULT_MULTIPLE
