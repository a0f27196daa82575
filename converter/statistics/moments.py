"""Second moments of activations: what every data-aware stage sees of the calibration text."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..distributed.workers import Workers

PANEL = 256  # rows per product: large enough for the matmul to run at full speed
SENT_ROWS = 1024  # rows per exchange between processes


def upper_gram(x: Tensor) -> Tensor:
    """The upper triangle of X^T X of tokens x features (T, n), (n, n) float32 on x's device; below it, anything.

    Computed in float32, one panel of rows at a time: little more than half the work of the whole product.
    """
    x = x.float()
    n = x.shape[1]
    upper = x.new_zeros(n, n)
    for start in range(0, n, PANEL):
        stop = min(start + PANEL, n)
        torch.mm(x[:, start:stop].T, x[:, start:], out=upper[start:stop, start:])
    return upper


def mirror_upper(matrix: Tensor) -> None:
    """Make (n, n) symmetric by its upper triangle, in place."""
    n = len(matrix)
    for start in range(0, n, PANEL):
        stop = min(start + PANEL, n)
        corner = matrix[start:stop, start:stop]
        corner.copy_(corner.triu() + corner.triu(1).T)
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T


@dataclass
class Moment:
    """Running second moment of an activation stream: Sigma = X^T X / T, accumulated in float64.

    Attributes:
        total: (n, n) float64 sum over tokens; None before the first token.
        tokens: number of tokens seen.
        triangular: whether only the upper triangle of `total` holds.
        done: whether `total` is the mean by now.
    """

    total: Tensor | None = None
    tokens: int = 0
    triangular: bool = False
    done: bool = False

    def add(self, x: Tensor) -> None:
        """Add tokens x features (T, n)."""
        self.triangular = True
        self._accumulate(upper_gram(x), len(x))

    def add_cross(self, x: Tensor, y: Tensor) -> None:
        """Add paired tokens of two streams, (T, m) and (T, n): the running moment becomes X^T Y / T."""
        self._accumulate(x.float().T @ y.float(), len(x))

    def _accumulate(self, product: Tensor, tokens: int) -> None:
        if self.done:
            raise ValueError("the mean was taken already")
        if self.total is None:
            self.total = product.double()
        else:
            self.total += product
        self.tokens += tokens

    def all_reduce_(self, shape: tuple[int, int], workers: Workers, device: torch.device) -> None:
        """Add what the other processes of the job saw; every process then has the sum.

        Where only the upper triangle holds, little more than that is sent.

        Args:
            shape: of the moment; a process without a window has not seen it.
            workers: of the job.
            device: the job's.
        """
        if workers.count == 1:
            return
        tokens, triangular = workers.totals([self.tokens, self.triangular])
        if tokens == 0:
            return
        self.tokens, self.triangular = int(tokens), triangular > 0
        if self.total is None:
            self.total = torch.zeros(shape, dtype=torch.float64, device=device)
        for start in range(0, shape[0], SENT_ROWS):
            part = self.total[start : start + SENT_ROWS, start if self.triangular else 0 :]
            sent = part.contiguous()
            workers.all_reduce_(sent)
            part.copy_(sent)

    def mean(self) -> Tensor:
        """Sigma (n, n) float64, made in place: a large one is in memory once. Nothing can be added afterwards.

        Raises:
            ValueError: nothing was added.
        """
        if self.total is None:
            raise ValueError("no tokens were added")
        if not self.done:
            self.total /= self.tokens
            if self.triangular:
                mirror_upper(self.total)
            self.done = True
        return self.total


@dataclass
class GroupMoments:
    """Moments of one input group.

    Attributes:
        dense: Sigma of the dense model's activations X.
        compressed: Sigma' of X', the same inputs when everything before is already compressed.
        cross_moment: Delta = (X - X')^T X' / T: what the compressed stream lacks, against what it has.
        output_cross_moment: W Delta in its place, where the group's one linear has fewer outputs than inputs.
        stacked: second moment of the stack-of-batch activations of X' (AdaSVD eq. 14, 15).
        mean_abs: mean |X| per feature (n,) float64, where the method sees it.
        held_out: over windows that no factor was fitted on: of X', or of X where the method sees only that.
    """

    dense: Moment = field(default_factory=Moment)
    compressed: Moment = field(default_factory=Moment)
    cross_moment: Moment = field(default_factory=Moment)
    output_cross_moment: Moment = field(default_factory=Moment)
    stacked: Moment = field(default_factory=Moment)
    mean_abs: Tensor | None = None
    held_out: Moment = field(default_factory=Moment)
