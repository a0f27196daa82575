"""Greedy text of a runtime, held against torch: which of two tokens that are almost equally likely comes is chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

# unit roundoff of what weights are stored in
STORED = {"fp32": 2**-24, "fp16": 2**-11}
ROUNDINGS = 10  # one after another from a token to a logit of a tiny model: embedding, four matmuls a block, head
COLUMNS = 160  # of its widest matmul, summed in float32


def check_greedy(model: Any, prompt: Sequence[int], generated: Sequence[int], stored: str = "fp32") -> None:
    """Every generated token is torch's most likely one behind the tokens before it, or tied with it.

    Args:
        model: in float32.
        prompt: token ids.
        generated: what a runtime gave; the end token may be left out.
        stored: a key of `STORED`. Logits of both tokens may be off by `ROUNDINGS` times its unit roundoff, and that of
            float32 sums, in multiples of the logits' standard deviation; a smaller margin is a tie.
    """
    ids = torch.tensor([[*prompt, *generated]])
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1]
    tie = 2 * ROUNDINGS * (STORED[stored] + COLUMNS * 2**-24) * logits.std(-1)
    behind = logits.amax(-1) - logits.gather(1, torch.tensor(generated)[:, None])[:, 0]
    assert (behind <= tie).all(), (behind / tie).tolist()
