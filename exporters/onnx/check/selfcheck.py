"""After every export: does the folder load, and does it compute what the torch model computes?

An exporter can write a model that does not load, or computes something else, without an error. So the folder is run,
in plain ONNX Runtime and in ONNX Runtime GenAI, before it gets its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ....converter.core.errors import InputError
from ..session import Decoder, open_decoder
from .check_windows import Reference
from .genai_check import check_genai
from .graph_check import check_graph

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOAT_TOLERANCE = 2e-3
"""Largest logit difference of an export in floats, in units of the reference's standard deviation (5e-6 is usual)."""
CODES_TOLERANCE = 0.25
"""Largest median KLD, in nats, over a window, that rounding activations may cost codes (0.001 to 0.03 is usual)."""

_DECODED = 3  # last tokens of each window that are fed one at a time


@dataclass(frozen=True)
class Tolerance:
    """How far logits may be from torch's.

    Attributes:
        quantized: compare distributions (median KLD in nats) rather than logits (largest difference in standard
            deviations of the reference).
        limit: in that unit.
    """

    quantized: bool
    limit: float

    @property
    def unit(self) -> str:
        """What is measured, for people."""
        return "median KLD" if self.quantized else "largest logit difference in standard deviations"

    def difference(self, reference: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
        """Of two (T, vocabulary) arrays."""
        if self.quantized:
            return float(np.median(kld(reference, logits)))
        return float(np.abs(logits - reference).max() / max(float(reference.std()), 1e-12))

    def check(self, reference: NDArray[np.float32], logits: NDArray[np.float32], where: str) -> float:
        """The difference.

        Raises:
            InputError: it is above the limit, or not a number.
        """
        difference = self.difference(reference, logits)
        if not difference <= self.limit:
            raise InputError(
                f"the ONNX model does not compute what the torch model computes: {where}: {self.unit} "
                f"{difference:.3g}, at most {self.limit:g} is accepted; this model cannot be exported to ONNX"
            )
        return difference


def tolerance(*, codes: bool) -> Tolerance:
    """What applies to weights that are stored as codes, or as floats; they are compared with the very same weights."""
    return Tolerance(codes, CODES_TOLERANCE if codes else FLOAT_TOLERANCE)


def check_export(folder: Path, reference: Reference, allowed: Tolerance) -> float:
    """Validate the graph, compare every window in both runtimes, generate, and tokenize.

    Args:
        folder: what the exporter wrote.
        reference: torch's results.
        allowed: how far logits may be away.

    Returns:
        The largest difference found, in the tolerance's unit.

    Raises:
        InputError: the folder does not load, or computes something else; one line says what.
    """
    import torch

    check_graph(folder, reference.attention, reference.context)
    decoder = open_decoder(folder, threads=torch.get_num_threads())  # as the reference was made
    found = [
        _check_window(decoder, window, logits, allowed)
        for window, logits in zip(reference.windows, reference.logits, strict=True)
    ]
    found.append(check_genai(folder, reference, decoder, allowed.check))
    return max(found)


def _check_window(
    decoder: Decoder, window: NDArray[np.int32], reference: NDArray[np.float32], allowed: Tolerance
) -> float:
    """One window at once; then half of it, most of the rest after it, and the last tokens one at a time."""
    whole, _ = decoder.run(window, decoder.empty_cache, keep_cache=False)
    found = allowed.check(reference, whole, f"ONNX Runtime, {len(window)} tokens at once")
    bounds = [0, len(window) // 2, *range(max(len(window) - _DECODED, len(window) // 2 + 1), len(window) + 1)]
    cache, parts = decoder.empty_cache, []
    for start, stop in pairwise(bounds):
        logits, cache = decoder.run(window[start:stop], cache, keep_cache=True)
        parts.append(logits)
    where = f"ONNX Runtime, {len(window)} tokens through the KV cache"
    return max(found, allowed.check(reference, np.concatenate(parts), where))


def kld(reference: NDArray[np.float32], logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(softmax(reference) || softmax(logits)) of every position, in nats, (T,); both arguments (T, vocabulary)."""
    p, q = (_log_softmax(values.astype(np.float64)) for values in (reference, logits))
    result: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(-1)
    return result


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = values - values.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
