"""What every runtime must offer so that one set of measurements serves them all."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]  # (T,)
Logits = NDArray[np.float32]  # (T, vocabulary) or (vocabulary,)
SEQUENCES = 16
"""The most sequences that any runtime is asked to run at once."""


class Backend(Protocol):
    """One loaded model in one runtime, on one sequence at a time.

    `name` is the runtime's name as shown in reports: "torch", "llama.cpp", "onnxruntime", "onnxruntime-genai".
    """

    name: str

    def window_logits(self, tokens: Tokens) -> Logits:
        """Logits (T, vocabulary) of every position of one window, from an empty state. Row t predicts token t + 1."""
        ...

    def reset(self) -> None:
        """Forget the sequence (empty KV cache)."""
        ...

    def feed(self, tokens: Tokens) -> Logits:
        """Append tokens to the sequence and return the logits (vocabulary,) after the last one."""
        ...

    def close(self) -> None:
        """Free the model. The backend cannot be used afterwards."""
        ...


@runtime_checkable
class Together(Protocol):
    """A backend that can also run several sequences at once, which is quicker than one after the other."""

    def at_once(self, length: int) -> int:
        """How many sequences of at most `length` tokens it has room for; at least 1."""
        ...

    def feed_all(self, tokens: NDArray[np.int32]) -> Logits:
        """Append tokens (B, T), one row to each of B sequences; logits (B, vocabulary) after the last ones.

        After `reset` any B up to `at_once` and any T, then the same B and one token each.
        """
        ...
