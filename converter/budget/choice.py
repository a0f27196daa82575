"""One candidate per matrix under a budget of bytes: a knapsack, solved by lower convex hulls and one multiplier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .forms import Candidate

EXACT_SUMS = 20_000
"""While there are no more undominated sums than this, all of them are compared."""


def smallest(candidates: Sequence[Sequence[Candidate]]) -> int:
    """Bytes of the smallest choice there is.

    Args:
        candidates: of every matrix, at least one each.
    """
    return sum(min(candidate.bytes for candidate in found) for found in candidates)


def choose(candidates: Sequence[Sequence[Candidate]], budget: int) -> list[Candidate]:
    """minimize sum_i loss_i subject to sum_i bytes_i <= budget, one candidate of every matrix.

    Small sets are solved exactly. Larger ones along the lower convex hulls of (bytes, loss): all steps of all hulls by
    falling gain per byte are the path that one multiplier of the budget takes as it shrinks, and every point of it is
    the optimum of its own bytes. Where the next step is too large for what is left, the path goes on without the steps
    of its size, or of half of it and so on. All points of all such paths are the same for every budget, and the best
    that fits is taken: so more bytes never give more loss.

    Args:
        candidates: of every matrix, at least one each.
        budget: bytes.

    Raises:
        ValueError: not even the smallest choice fits.
    """
    least = smallest(candidates)
    if least > budget:
        raise ValueError(f"{budget} bytes, but the smallest choice takes {least}")
    undominated = [_undominated(found) for found in candidates]
    exact = _exact(undominated, budget)
    return exact if exact is not None else _along_hulls([lower_hull(found) for found in undominated], budget)


def lower_hull(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The vertices of the lower convex hull of (bytes, loss), by rising bytes and falling loss.

    Args:
        candidates: at least one.
    """
    hull: list[Candidate] = []
    for new in _undominated(candidates):
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], new):
            hull.pop()
        hull.append(new)
    return hull


def _gain(before: Candidate, after: Candidate) -> float:
    """Loss that a byte more saves between two candidates."""
    return (before.loss - after.loss) / (after.bytes - before.bytes)


def _undominated(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that nothing smaller or equal is at least as good as, by rising bytes and falling loss."""
    kept: list[Candidate] = []
    for new in sorted(candidates, key=lambda candidate: (candidate.bytes, candidate.loss)):
        if not kept or new.loss < kept[-1].loss:
            kept.append(new)
    return kept


def _exact(candidates: Sequence[Sequence[Candidate]], budget: int) -> list[Candidate] | None:
    """The optimum; None where too many sums would have to be compared."""
    total, loss = np.zeros(1, dtype=np.int64), np.zeros(1)
    taken: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for found in candidates:
        if len(total) * len(found) > EXACT_SUMS:
            return None
        sums = (total[:, None] + np.array([candidate.bytes for candidate in found])).reshape(-1)
        losses = (loss[:, None] + np.array([candidate.loss for candidate in found])).reshape(-1)
        order = np.lexsort((losses, sums))
        best = np.minimum.accumulate(losses[order])
        kept = order[np.concatenate([[True], best[1:] < best[:-1]])]
        taken.append((kept // len(found), kept % len(found)))
        total, loss = sums[kept], losses[kept]
    state = int(np.searchsorted(total, budget, side="right")) - 1
    chosen: list[Candidate] = []
    for found, (earlier, own) in zip(reversed(candidates), reversed(taken), strict=True):
        chosen.append(found[int(own[state])])
        state = int(earlier[state])
    return chosen[::-1]


@dataclass(frozen=True)
class _Steps:
    """The steps of all hulls by falling gain per byte.

    Attributes:
        owner: matrix of each (s,).
        bytes, gain: what each takes and saves (s,).
    """

    owner: NDArray[np.int64]
    bytes: NDArray[np.int64]
    gain: NDArray[np.float64]

    def path(self, start: int, size: int, matrices: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Steps that a path takes from `start` on without those of `size` bytes and more, and the bytes after each: a
        matrix goes on until its first of them, and stays there."""
        coming = np.arange(start, len(self.owner))
        large = coming[self.bytes[start:] >= size]
        stays = np.full(matrices, len(self.owner))
        stays[self.owner[large[::-1]]] = large[::-1]  # of several the first
        steps = coming[coming < stays[self.owner[start:]]]
        return steps, np.cumsum(self.bytes[steps])


def _halvings(largest: int, smallest: int) -> list[int]:
    """`largest`, half of it and so on, while something at least as large as `smallest` is below."""
    sizes = [largest]
    while sizes[-1] // 2 > smallest:
        sizes.append(sizes[-1] // 2)
    return sizes


def _steps(hulls: Sequence[Sequence[Candidate]]) -> _Steps:
    found = [
        (-_gain(before, after), owner, after.bytes - before.bytes, before.loss - after.loss)
        for owner, hull in enumerate(hulls)
        for before, after in pairwise(hull)
    ]
    found.sort(key=lambda step: step[:2])  # stable: the steps of one hull stay in their order
    return _Steps(
        np.array([step[1] for step in found], dtype=np.int64),
        np.array([step[2] for step in found], dtype=np.int64),
        np.array([step[3] for step in found], dtype=np.float64),
    )


def _along_hulls(hulls: Sequence[Sequence[Candidate]], budget: int) -> list[Candidate]:
    """The best point that fits of the path of all steps, and of those that go on without the steps of some size."""
    steps = _steps(hulls)
    left = budget - sum(hull[0].bytes for hull in hulls)
    before = np.concatenate([[0], np.cumsum(steps.bytes)])
    saved = np.concatenate([[0.0], np.cumsum(steps.gain)])
    main = int(np.searchsorted(before, left, side="right")) - 1  # steps of the whole path that fit
    best, chosen = saved[main], np.arange(main)
    for start in range(main, -1, -1) if main < len(steps.owner) else ():
        room = left - before[start]
        if saved[start] + room * steps.gain[start] / steps.bytes[start] <= best:
            continue  # no later step gains more per byte
        for size in _halvings(int(steps.bytes[start]), int(steps.bytes.min())):
            further, total = steps.path(start, size, len(hulls))
            count = int(np.searchsorted(total, room, side="right"))
            gain = saved[start] + steps.gain[further[:count]].sum()
            if gain > best:
                best, chosen = gain, np.concatenate([np.arange(start), further[:count]])
    taken = np.bincount(steps.owner[chosen], minlength=len(hulls))
    return [hull[count] for hull, count in zip(hulls, taken, strict=True)]
