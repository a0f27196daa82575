"""Statistics of the dense model on disk, one file per block and kind: made once, used by rank allocations and fits."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..core.errors import InputError, UsageError
from ..distributed.workers import ALONE, Workers
from ..storage.claim import claim
from ..storage.files import remove, replacing
from ..storage.safetensors_header import read_header

Kind = Literal["dense", "gradients", "fisher", "sensitivity", "block-error"]
IDENTITY = "identity.json"


class Statistics:
    """A folder of named tensors, float32.

    Files appear whole, so that a job that was stopped goes on with those that are there. A folder that is shared
    between jobs says what it was made from, see `claim`. All processes of a job read it, and one of them writes; `has`
    and `save` are called by all.
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
        return self.workers.broadcast_object(lambda: all(self._file(kind, index).is_file() for index in range(blocks)))

    def save(self, kind: Kind, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep a block's tensors.

        Raises:
            ResourceError: no space left.
        """
        from safetensors.torch import save_file

        if not self.workers.is_main_process:
            return
        with replacing(self._file(kind, index), force=True, folder=False) as beside:
            save_file({name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}, beside)

    def read(
        self, kind: Kind, index: int, device: torch.device, names: Callable[[str], bool] = lambda name: True
    ) -> dict[str, Tensor]:
        """A block's tensors, or those whose names are wanted, float64, on a device.

        Raises:
            FileNotFoundError: never saved.
            UsageError: the file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._file(kind, index), framework="pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys() if names(name)}  # noqa: SIM118
        except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._damage(kind, index, str(error)) from None
        return {name: t.to(device).double() for name, t in found.items()}

    def read_one(self, kind: Kind, index: int, device: torch.device, name: str) -> Tensor:
        """One tensor of a block, float64, on a device.

        Raises:
            FileNotFoundError: the block was never saved.
            UsageError: the file is damaged.
        """
        return self.read(kind, index, device, lambda stored: stored == name)[name]

    def check(self, kind: Kind, index: int, expected: Mapping[str, tuple[int, ...]]) -> None:
        """See whether a block's file holds what it must, by its header.

        Args:
            expected: name -> shape; what else is there does not matter.

        Raises:
            UsageError: the file is damaged.
        """
        try:
            found = {name: tuple(entry["shape"]) for name, entry in read_header(self._file(kind, index)).items()}
        except InputError as error:
            raise self._damage(kind, index, str(error)) from None
        for name, shape in expected.items():
            if found.get(name) != shape:
                raise self._damage(kind, index, f"{name} is {found.get(name)}, not {shape}")

    def _damage(self, kind: Kind, index: int, why: str) -> UsageError:
        return UsageError(f"{self._file(kind, index)}: damaged ({why}); remove it to gather it again")

    def _file(self, kind: Kind, index: int) -> Path:
        return self.folder / f"{kind}-{index:05d}.safetensors"


@contextmanager
def open_statistics(folder: Path | None, workers: Workers = ALONE) -> Iterator[Statistics]:
    """Statistics in `folder`, which stays, or in a temporary one that is removed afterwards.

    Args:
        folder: has to be given, and be seen by all, where several processes share the job.
        workers: of the job.

    Raises:
        UsageError: `folder` is a file.
    """
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"{folder}: is not a folder") from None
        yield Statistics(folder, workers)
        return
    with tempfile.TemporaryDirectory(prefix="lowrank-statistics-") as temporary:
        yield Statistics(Path(temporary))
