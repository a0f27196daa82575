"""How far a candidate's predictions are from a reference's, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..converter.errors import InputError
from .backends.protocol import Logits
from .perplexity import ROWS_AT_ONCE, log_normaliser


@dataclass(frozen=True)
class Divergence:
    """Per-token comparison at P positions.

    Attributes:
        kld: KL(reference || candidate) in nats, (P,) float64, never negative.
        same_top: whether both rank the same token first, (P,) bool.
        top_change: candidate's minus reference's probability of the reference's top token, (P,) float64.
    """

    kld: NDArray[np.float64]
    same_top: NDArray[np.bool_]
    top_change: NDArray[np.float64]


@dataclass(frozen=True)
class Parity:
    """Summary of a `Divergence` over all windows.

    Attributes:
        mean_kld, median_kld, p99_kld, max_kld: of KL(reference || candidate) per token, in nats.
        same_top: share of tokens at which both rank the same token first, 0 to 1.
        mean_top_change, max_top_change: absolute change of the probability of the reference's top token, 0 to 1.
        tokens: number of positions compared.
    """

    mean_kld: float
    median_kld: float
    p99_kld: float
    max_kld: float
    same_top: float
    mean_top_change: float
    max_top_change: float
    tokens: int


def divergence(reference: Logits, candidate: Logits) -> Divergence:
    """Compare two models' logits at the same P positions.

    KL = sum p (a - b) + log Z_b - log Z_a with p = softmax(a), in float64: in float32 the rounding of the logarithms
    would be as large as the parity that is to be shown (1e-6). The vocabulary is walked a few rows at a time.

    Args:
        reference: (P, vocabulary) float32, finite.
        candidate: (P, vocabulary) float32, finite.

    Raises:
        InputError: the shapes differ.
    """
    if reference.shape != candidate.shape:
        raise InputError(f"reference logits have shape {reference.shape}, candidate logits {candidate.shape}")
    positions = len(reference)
    kld, change = np.empty(positions), np.empty(positions)
    same = np.empty(positions, dtype=np.bool_)
    for start in range(0, positions, ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, positions))
        a, b = reference[rows].astype(np.float64), candidate[rows].astype(np.float64)
        norm_a, norm_b = log_normaliser(a), log_normaliser(b)
        p = np.exp(a - norm_a[:, None])
        kld[rows] = (p * (a - b)).sum(axis=-1) + norm_b - norm_a
        top = a.argmax(axis=-1)
        index = np.arange(len(top))
        same[rows] = top == b.argmax(axis=-1)
        change[rows] = np.exp(b[index, top] - norm_b) - p[index, top]
    return Divergence(np.maximum(kld, 0.0), same, change)


def parity(windows: Sequence[Divergence]) -> Parity:
    """Summarise the divergence of all windows, each token counting once."""
    kld = np.concatenate([window.kld for window in windows])
    same = np.concatenate([window.same_top for window in windows])
    change = np.abs(np.concatenate([window.top_change for window in windows]))
    return Parity(
        mean_kld=float(kld.mean()),
        median_kld=float(np.median(kld)),
        p99_kld=float(np.quantile(kld, 0.99)),
        max_kld=float(kld.max()),
        same_top=float(same.mean()),
        mean_top_change=float(change.mean()),
        max_top_change=float(change.max()),
        tokens=len(kld),
    )
