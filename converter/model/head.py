"""The head of a model: from what the last block gives to logits, and the way back of gradients."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Head:
    """Logits are W x, or c tanh(W x / c) with a soft cap c, of hidden states x behind the norm.

    Attributes:
        norm: the model's last.
        weight: W (vocabulary, d), times the scale of the logits.
        cap: c, where the model has one.
    """

    norm: nn.Module
    weight: Tensor
    cap: float | None = None

    def logits(self, x: Tensor) -> Tensor:
        """Logits (T, vocabulary) float32 of normed hidden states (T, d), multiplied in the weight's type."""
        logits = (x.to(self.weight.dtype) @ self.weight.T).float()
        return logits if self.cap is None else (logits / self.cap).tanh_().mul_(self.cap)

    def backward(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """The gradient (T, d) at x, in the weight's type, from that at the logits (T, vocabulary), and these."""
        if self.cap is not None:
            gradient = gradient * (1 - (logits / self.cap).square_())
        return gradient.to(self.weight.dtype) @ self.weight
