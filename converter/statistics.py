"""Statistics of the dense model on disk, one file per block and kind: made once, used by rank allocations and fits."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .claim import claim
from .errors import UsageError
from .files import remove, replacing
from .workers import ALONE, Parcel, Workers

Kind = Literal["dense", "gradients", "fisher", "sensitivity"]
IDENTITY = "identity.json"


class Statistics:
    """A folder of named tensors, float32.

    Files appear whole, so that a job that was stopped goes on with those that are there. A folder that is shared
    between jobs says what it was made from, see `claim`. Of the processes of one job the writer alone has the files;
    `has`, `save` and `read` are called by all.
    """

    def __init__(self, folder: Path, workers: Workers = ALONE) -> None:
        self.folder = folder
        self.workers = workers

    def claim(self, identity: Mapping[str, Any]) -> None:
        """Write down what the statistics are made from, or check that it is what was written down before.

        Args:
            identity: JSON-ready; whatever changes the statistics.

        Raises:
            UsageError: the folder was made from something else, or holds files of another kind.
            ResourceError: the folder is not writable.
        """
        path = self.folder / IDENTITY
        if not path.is_file() and any(not entry.name.startswith(".") for entry in self.folder.iterdir()):
            raise UsageError(f"{self.folder}: is not a folder of statistics; give a new or empty one")
        claim(path, identity, holds="statistics", otherwise="give another folder")

    def forget(self, kind: str) -> None:
        """Remove whatever there is of one kind."""
        for file in self.folder.glob(f"{kind}-*.safetensors"):
            remove(file)

    def has(self, kind: Kind, blocks: int) -> bool:
        """Whether every one of `blocks` blocks has its file of this kind."""
        return self.workers.from_writer(lambda: all(self._file(kind, index).is_file() for index in range(blocks)))

    def save(self, kind: Kind, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep a block's tensors.

        Raises:
            ResourceError: no space left.
        """
        from safetensors.torch import save_file

        if not self.workers.writes:
            return
        with replacing(self._file(kind, index), force=True, folder=False) as beside:
            save_file({name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}, beside)

    def read(self, kind: Kind, index: int, device: torch.device) -> dict[str, Tensor]:
        """A block's tensors, float64, on a device.

        Raises:
            FileNotFoundError: never saved.
        """
        from safetensors.torch import load_file

        parcel = Parcel(load_file(self._file(kind, index))) if self.workers.writes else None
        return {name: t.double() for name, t in self.workers.sent(parcel, 0, device).tensors.items()}

    def _file(self, kind: Kind, index: int) -> Path:
        return self.folder / f"{kind}-{index:05d}.safetensors"


@contextmanager
def open_statistics(folder: Path | None, workers: Workers = ALONE) -> Iterator[Statistics]:
    """Statistics in `folder`, which stays, or in a temporary one that is removed afterwards.

    Args:
        folder: where the writer keeps them; the other processes have none.
        workers: of the job.

    Raises:
        UsageError: `folder` is a file.
    """
    if folder is not None and workers.writes:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"{folder}: is not a folder") from None
        yield Statistics(folder, workers)
        return
    with tempfile.TemporaryDirectory(prefix="lowrank-statistics-") as temporary:
        yield Statistics(Path(temporary), workers)
