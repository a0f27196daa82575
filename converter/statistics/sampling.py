"""Windows that a model writes itself: calibration without any data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..core.progress import Progress
from ..model.loading import load, load_tokenizer
from ..model.tokens import tokens_of
from .calibration import Tokens


@dataclass(frozen=True)
class Sampler:
    """Samples from a dense model at temperature 1.

    Attributes:
        model: its folder.
        device, dtype: that it is loaded to, as a whole.
        progress: receives tokens.
    """

    model: Path
    device: str
    dtype: torch.dtype
    progress: Progress

    @torch.no_grad()
    def __call__(self, count: int, length: int, seed: int) -> Tokens:
        """Windows (count, length) int32 that begin as the model's texts do.

        The same seed gives the same windows on the same device.
        """
        start = tokens_of(load_tokenizer(self.model)).first
        model = load(self.model, device=self.device, dtype=self.dtype)
        generator = torch.Generator(device=model.device).manual_seed(seed)
        step = tokens = torch.full((count, 1), start, device=model.device)
        cache = None
        with self.progress.stage("sampling calibration text from the model", length - 1) as advance:
            for _ in range(length - 1):
                output = model(step, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                step = torch.multinomial(output.logits[:, -1].float().softmax(-1), 1, generator=generator)
                tokens = torch.cat([tokens, step], dim=1)
                advance(1)
        return np.asarray(tokens.cpu().numpy(), dtype=np.int32)
