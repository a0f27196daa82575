"""Token windows and which of their predictions count: the same in every backend."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...converter.core.errors import InputError
from ...converter.texts.corpus import Counts


@dataclass(frozen=True)
class Windows:
    """What every model is measured on.

    Attributes:
        tokens: (N, T) int32 token ids; each window is run from an empty state.
        first: (N,) int32, 0 <= first < T - 1. Row t of a window's logits predicts token t + 1; rows first .. T - 2
            are scored. The tokens before only serve as context.
        drawn_from: how much the text was that they were cut from; None of windows that were given.
    """

    tokens: NDArray[np.int32]
    first: NDArray[np.int32]
    drawn_from: Counts | None = None

    @classmethod
    def whole(cls, tokens: NDArray[np.int32]) -> Windows:
        """Windows of which every prediction counts."""
        return cls(tokens, np.zeros(len(tokens), dtype=np.int32))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        """T, tokens per window."""
        return int(self.tokens.shape[1])

    def scored(self, index: int) -> slice:
        """Rows of a window's logits that are scored."""
        return slice(int(self.first[index]), self.length - 1)

    def targets(self, index: int) -> NDArray[np.int32]:
        """The tokens that those rows predict."""
        found: NDArray[np.int32] = self.tokens[index, self.first[index] + 1 :]
        return found

    @property
    def counts(self) -> NDArray[np.int64]:
        """(N,): scored predictions of each window."""
        found: NDArray[np.int64] = self.length - 1 - self.first.astype(np.int64)
        return found

    def facts(self) -> dict[str, Any]:
        """Count, lengths, hash and origin, as reports hold them."""
        digest = hashlib.sha256(np.ascontiguousarray(self.tokens, dtype="<i4").tobytes())
        if self.first.any():
            digest.update(np.ascontiguousarray(self.first, dtype="<i4").tobytes())
        return {
            "count": len(self),
            "length": self.length,
            "predicted_tokens": int(self.counts.sum()),
            "sha256": digest.hexdigest(),
            **({} if self.drawn_from is None else {"drawn_from": asdict(self.drawn_from)}),
        }


def check_windows(windows: Windows, config: Mapping[str, Any]) -> int:
    """Check evaluation windows against a model's configuration.

    Returns:
        The longest sequence, in tokens, that the model holds.

    Raises:
        InputError: windows of another shape, vocabulary or length.
    """
    tokens = windows.tokens
    if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise InputError(f"evaluation windows have shape {tokens.shape}; need at least one window of two tokens")
    vocabulary, longest = int(config["vocab_size"]), int(config["max_position_embeddings"])
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise InputError(f"evaluation windows hold token {tokens.max()}, the model knows {vocabulary}: wrong tokenizer")
    if tokens.shape[1] > longest:
        raise InputError(f"evaluation windows of {tokens.shape[1]} tokens, but the model holds {longest}")
    return longest
