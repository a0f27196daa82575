"""A model's logits over all windows, kept on disk so that the model itself need not stay in memory."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...converter.core.errors import InputError, ResourceError
from ...converter.core.progress import Progress
from ..backends.protocol import Backend, Logits
from .perplexity import token_losses
from .windows import Windows

BYTES_PER_LOGIT = 4
DISK_RESERVE = 64 * 2**20  # never fill a disk to the last byte: the report has to fit too


class ReferenceLogits:
    """Float32 logits of the scored positions of all windows, in a scratch file; all measurements use exactly these.

    Use as a context manager: the file is removed on leaving.

    Attributes:
        windows: what was run.
        losses: token losses (sum of windows.counts,) float64 of the recorded model, computed while recording.
    """

    def __init__(self, path: Path, windows: Windows, losses: NDArray[np.float64], vocabulary: int) -> None:
        self.path = path
        self.windows = windows
        self.losses = losses
        self.vocabulary = vocabulary
        self._starts = np.concatenate([[0], np.cumsum(windows.counts)])

    @classmethod
    def record(
        cls, backend: Backend, windows: Windows, path: Path, progress: Progress, *, label: str = "reference"
    ) -> ReferenceLogits:
        """Run `backend` over `windows` and write its logits to `path`. Memory: the logits of one window.

        Raises:
            InputError: a logit is not finite (names backend and window).
            ResourceError: the disk of `path` has not enough room, before the second window is run.
        """
        losses = []
        vocabulary = 0
        try:
            with path.open("wb") as file, progress.stage(f"{label}: logits", len(windows)) as advance:
                for index, tokens in enumerate(windows.tokens):
                    logits = checked_logits(backend, tokens, index)[windows.scored(index)]
                    if index == 0:
                        vocabulary = logits.shape[1]
                        _require_room(path, int(windows.counts.sum()) * vocabulary * BYTES_PER_LOGIT)
                    _write(file, logits)
                    losses.append(token_losses(logits, windows.targets(index)))
                    advance(1)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return cls(path, windows, np.concatenate(losses), vocabulary)

    def window(self, index: int) -> Logits:
        """Logits (P, vocabulary) of a window's scored positions, mapped read-only: pages are read as they are used."""
        positions = int(self.windows.counts[index])
        offset = int(self._starts[index]) * self.vocabulary * BYTES_PER_LOGIT
        return np.memmap(self.path, np.float32, mode="r", offset=offset, shape=(positions, self.vocabulary))

    def __len__(self) -> int:
        return len(self.windows)

    def __iter__(self) -> Iterator[Logits]:
        return (self.window(index) for index in range(len(self)))

    def __enter__(self) -> ReferenceLogits:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the scratch file."""
        self.path.unlink(missing_ok=True)


def checked_logits(backend: Backend, tokens: NDArray[np.int32], index: int) -> Logits:
    """Logits (T, vocabulary) of one window, refused unless every one is finite.

    Args:
        backend: the model.
        tokens: the window, (T,).
        index: number of the window from 0, for the message.

    Raises:
        InputError: NaN or infinite logits, or a wrong number of positions; names backend and window.
    """
    logits = backend.window_logits(tokens)
    if logits.ndim != 2 or len(logits) != len(tokens):
        raise InputError(f"{backend.name}: window {index} of {len(tokens)} tokens gave logits of shape {logits.shape}")
    damaged = np.flatnonzero(~np.isfinite(logits).all(axis=-1))
    if len(damaged):
        kind = "NaN" if np.isnan(logits[damaged[0]]).any() else "infinite"
        raise InputError(f"{backend.name}: {kind} logits in window {index} at position {damaged[0]}")
    return logits


def _require_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed + DISK_RESERVE > free:
        raise ResourceError(
            f"{path.parent}: reference logits need {needed / 1e9:.2f} GB of scratch space, {free / 1e9:.2f} GB are "
            "free; use fewer or shorter windows, or another scratch folder"
        )


def _write(file: BinaryIO, logits: Logits) -> None:
    """Append logits. Plain writes, since a full disk under a memory map kills the process without an error."""
    try:
        file.write(np.ascontiguousarray(logits, dtype=np.float32).data)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"{file.name}: disk full while writing reference logits; use another scratch folder"
            ) from None
        raise
