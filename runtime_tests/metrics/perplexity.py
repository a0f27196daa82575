"""Logits -> token losses -> perplexity with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..backends.protocol import Logits, Tokens

ROWS_AT_ONCE = 8  # rows of logits held in float64: 8 rows of 150,000 tokens are 10 MB


@dataclass(frozen=True)
class Perplexity:
    """PPL = exp(mean token loss), as llama.cpp's tools report it.

    Attributes:
        value: the perplexity; inf where the exponential overflows.
        standard_error: value x standard error of the mean token loss; nan for a single token.
        tokens: number of predicted tokens.
    """

    value: float
    standard_error: float
    tokens: int

    @property
    def words(self) -> str:
        """Value ± standard error, as precise as makes sense; a dash for NaN."""
        if not math.isfinite(self.value):
            return "-"
        precision = 2 if self.value < 100 else 1 if self.value < 1000 else 0
        return f"{self.value:,.{precision}f} ± {self.standard_error:,.{precision}f}"


NOT_MEASURED = Perplexity(math.nan, math.nan, 0)


def log_normalizer(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithm of the sum of exponentials of each row, (R, vocabulary) -> (R,)."""
    top: NDArray[np.float64] = logits.max(axis=-1)
    total: NDArray[np.float64] = np.exp(logits - top[:, None]).sum(axis=-1)
    return top + np.log(total)


def token_losses(logits: Logits, targets: Tokens) -> NDArray[np.float64]:
    """Negative log-likelihood, in nats, of the tokens that rows of logits predict.

    Args:
        logits: (P, vocabulary) float32.
        targets: (P,) token ids; row i predicts targets[i].

    Returns:
        (P,) float64; the sums are float64 throughout, a few rows at a time.
    """
    losses = np.empty(len(targets))
    for start in range(0, len(losses), ROWS_AT_ONCE):
        stop = min(start + ROWS_AT_ONCE, len(losses))
        rows = logits[start:stop].astype(np.float64)
        losses[start:stop] = log_normalizer(rows) - rows[np.arange(stop - start), targets[start:stop]]
    return losses


def perplexity(losses: NDArray[np.float64]) -> Perplexity:
    """Perplexity of token losses (any shape), each token counting once.

    The standard error is llama.cpp's: sqrt(variance / (tokens - 1)) of the mean loss, carried through the exponential.
    """
    mean = float(losses.mean())
    value = math.exp(mean) if mean < 700 else math.inf
    if losses.size < 2:
        return Perplexity(value, math.nan, losses.size)
    error = math.sqrt(float(losses.var()) / (losses.size - 1))
    return Perplexity(value, value * error, losses.size)
