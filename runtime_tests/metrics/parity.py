"""How far a candidate's predictions are from a reference's, token by token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...converter.core.errors import InputError
from ..backends.protocol import Logits, Tokens
from .perplexity import ROWS_AT_ONCE, log_normalizer

TOP = 5
BINS = 16  # of positions


@dataclass(frozen=True)
class Divergence:
    """Per-token comparison at P positions.

    Attributes:
        kld: KL(reference || candidate) in nats, (P,) float64, never negative.
        same_top: whether both rank the same token first, (P,) bool.
        top5: share of the reference's five likeliest tokens that are among the candidate's five, (P,) float64.
        change: candidate's minus reference's probability of the text's next token, (P,) float64.
    """

    kld: NDArray[np.float64]
    same_top: NDArray[np.bool_]
    top5: NDArray[np.float64]
    change: NDArray[np.float64]


@dataclass(frozen=True)
class AtPosition:
    """Predictions with about the same number of tokens before them.

    Attributes:
        position: mean number of tokens that were seen, the token before the predicted one included.
        mean_kld, same_top: as in `Parity`.
        tokens: number of predictions.
    """

    position: float
    mean_kld: float
    same_top: float
    tokens: int


@dataclass(frozen=True)
class Parity:
    """Summary of a `Divergence` over all windows; what llama.cpp's tool reports too is defined as there.

    Attributes:
        mean_kld, median_kld, p99_kld, max_kld: of KL(reference || candidate) per token, in nats.
        kld_error: standard error of the mean.
        same_top: share of tokens at which both rank the same token first, 0 to 1.
        top5: share of the reference's five likeliest tokens that are among the candidate's, 0 to 1.
        mean_change, rms_change, max_change: of the probability of the text's next token, candidate minus reference:
            mean with its sign, root mean square, largest absolute.
        tokens: number of positions compared.
        by_position: the same along the window, in up to 16 parts.
    """

    mean_kld: float
    kld_error: float
    median_kld: float
    p99_kld: float
    max_kld: float
    same_top: float
    top5: float
    mean_change: float
    rms_change: float
    max_change: float
    tokens: int
    by_position: tuple[AtPosition, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Parity:
        """What `asdict` made, after JSON."""
        numbers: dict[str, Any] = {key: math.nan if value is None else value for key, value in data.items()}
        numbers["by_position"] = tuple(AtPosition(**item) for item in data["by_position"])
        return cls(**numbers)


def divergence(reference: Logits, candidate: Logits, targets: Tokens) -> Divergence:
    """Compare two models' logits at the same P positions.

    KL = sum p (a - b) + log Z_b - log Z_a with p = softmax(a), in float64: in float32 the rounding of the logarithms
    would be as large as the parity that is to be shown (1e-6). The vocabulary is walked a few rows at a time.

    Args:
        reference: (P, vocabulary) float32, finite.
        candidate: (P, vocabulary) float32, finite.
        targets: (P,) the text's next tokens.

    Raises:
        InputError: the shapes differ.
    """
    if reference.shape != candidate.shape or len(targets) != len(reference):
        raise InputError(f"reference logits have shape {reference.shape}, candidate logits {candidate.shape}")
    positions = len(reference)
    kld, change, top5 = np.empty(positions), np.empty(positions), np.empty(positions)
    same = np.empty(positions, dtype=np.bool_)
    for start in range(0, positions, ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, positions))
        a, b = reference[rows].astype(np.float64), candidate[rows].astype(np.float64)
        norm_a, norm_b = log_normalizer(a), log_normalizer(b)
        p = np.exp(a - norm_a[:, None])
        kld[rows] = (p * (a - b)).sum(axis=-1) + norm_b - norm_a
        same[rows] = a.argmax(axis=-1) == b.argmax(axis=-1)
        top5[rows] = _shared_top(a, b)
        index, wanted = np.arange(len(a)), targets[rows]
        change[rows] = np.exp(b[index, wanted] - norm_b) - p[index, wanted]
    return Divergence(np.maximum(kld, 0.0), same, top5, change)


def _shared_top(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of each row's `TOP` largest entries of `a` that are among those of `b`, (R, vocabulary) -> (R,)."""
    size = min(TOP, a.shape[1])
    first = np.argpartition(a, -size, axis=-1)[:, -size:]
    second = np.argpartition(b, -size, axis=-1)[:, -size:]
    found: NDArray[np.float64] = (first[:, :, None] == second[:, None, :]).any(axis=-1).mean(axis=-1)
    return found


def parity(windows: Sequence[Divergence], first: Sequence[int] | NDArray[np.int32] | None = None) -> Parity:
    """Summarize the divergence of all windows, each token counting once.

    Args:
        windows: one per window.
        first: the row of each window that its first entry stands for (`Windows.first`); 0 by default.
    """
    kld = np.concatenate([window.kld for window in windows])
    same = np.concatenate([window.same_top for window in windows])
    change = np.concatenate([window.change for window in windows])
    starts = [0] * len(windows) if first is None else [int(row) for row in first]
    seen = np.concatenate([1 + row + np.arange(len(part.kld)) for row, part in zip(starts, windows, strict=True)])
    return Parity(
        mean_kld=float(kld.mean()),
        kld_error=float(kld.std() / math.sqrt(len(kld) - 1)) if len(kld) > 1 else math.nan,
        median_kld=float(np.median(kld)),
        p99_kld=float(np.quantile(kld, 0.99)),
        max_kld=float(kld.max()),
        same_top=float(same.mean()),
        top5=float(np.concatenate([window.top5 for window in windows]).mean()),
        mean_change=float(change.mean()),
        rms_change=float(np.sqrt((change**2).mean())),
        max_change=float(np.abs(change).max()),
        tokens=len(kld),
        by_position=_by_position(seen, kld, same),
    )


def _by_position(seen: NDArray[np.int64], kld: NDArray[np.float64], same: NDArray[np.bool_]) -> tuple[AtPosition, ...]:
    """Means over `BINS` equal parts of the range of positions."""
    low, high = int(seen.min()), int(seen.max())
    part = (seen - low) * BINS // (high - low + 1)
    groups = [np.flatnonzero(part == index) for index in range(BINS)]
    return tuple(
        AtPosition(float(seen[g].mean()), float(kld[g].mean()), float(same[g].mean()), len(g)) for g in groups if len(g)
    )
