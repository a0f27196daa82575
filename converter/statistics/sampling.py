"""Windows that a model writes itself: calibration without any data."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..core.errors import InputError, LowRankError
from ..core.progress import Progress
from ..model.fingerprint import model_sha256
from ..model.loading import load, load_tokenizer
from ..model.tokens import tokens_of
from ..storage.files import cache_folder, replacing
from .calibration import Tokens, read_token_windows


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

    def __call__(self, count: int, length: int, seed: int) -> Tokens:
        """Windows (count, length) int32 that begin as the model's texts do.

        The same seed gives the same windows on the same device. They are kept in the user's cache, where it is
        writable: choosing a size, the fit and each export ask for the same ones.
        """
        kept = cache_folder() / "sampled" / f"{self._key(count, length, seed)}.npy"
        with suppress(InputError):  # missing or damaged
            found = read_token_windows(kept, 2**31)
            if found.shape == (count, length):
                return found
        windows = self._sample(count, length, seed)
        with (
            suppress(LowRankError, OSError),
            replacing(kept, force=True, folder=False) as beside,
            beside.open("wb") as file,
        ):
            np.save(file, windows)
        return windows

    def _key(self, count: int, length: int, seed: int) -> str:
        """A hash of all that decides what is sampled."""
        parts = [
            model_sha256(self.model),
            count,
            length,
            seed,
            torch.device(self.device).type,
            self.dtype,
            torch.__version__,
        ]
        return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()

    @torch.no_grad()
    def _sample(self, count: int, length: int, seed: int) -> Tokens:
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
