"""Where the activations of all calibration windows lie between two blocks: in memory, or in a file without a name.

Of a GPU's work, in its memory or in the machine's.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..core.errors import ResourceError
from ..storage.files import is_disk_full


class Activations(Protocol):
    """A tensor per chunk of windows, each replaced by another of its shape as the windows go from block to block."""

    def __len__(self) -> int: ...

    def __getitem__(self, chunk: int, /) -> Tensor: ...

    def __setitem__(self, chunk: int, value: Tensor, /) -> None: ...

    def __iter__(self) -> Iterator[Tensor]: ...


Keep = Callable[[Iterable[Tensor]], Activations]


def in_memory(tensors: Iterable[Tensor]) -> Activations:
    """Keep tensors where they are."""
    return list(tensors)


@dataclass(frozen=True)
class OnHost:
    """Keeps tensors of a GPU in the machine's memory; the chunk in use alone is on the GPU."""

    def __call__(self, tensors: Iterable[Tensor]) -> Activations:
        """Copy tensors, one at a time."""
        return _Hosted(tensors)


class _Hosted:
    """Tensors on the CPU that go back to their device when they are read."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._held: list[tuple[Tensor, torch.device]] = []
        for tensor in tensors:
            self._held.append((tensor.cpu(), tensor.device))
            del tensor  # before the next is made

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[chunk] for chunk in range(len(self)))

    def __getitem__(self, chunk: int, /) -> Tensor:
        tensor, device = self._held[chunk]
        return tensor.to(device)

    def __setitem__(self, chunk: int, value: Tensor, /) -> None:
        self._held[chunk] = (value.detach().cpu(), self._held[chunk][1])


@dataclass(frozen=True)
class OnDisk:
    """Keeps tensors in a file of `folder`, of which the chunk in use alone is in memory.

    The file has no name: the system removes it with the process, however that ends.
    """

    folder: Path

    def __call__(self, tensors: Iterable[Tensor]) -> Activations:
        """Write tensors down, one at a time.

        Raises:
            ResourceError: the disk is full, or the folder is not writable.
        """
        return _Mapped(self.folder, tensors)


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the file."""

    offset: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class _Mapped:
    """Tensors of one file; a tensor that was read is a private mapping of its part, gone when it is let go."""

    def __init__(self, folder: Path, tensors: Iterable[Tensor]) -> None:
        self._folder = folder
        self._places: list[_Place] = []
        with _clear_errors(self._folder):
            self._file = tempfile.TemporaryFile(prefix=".activations-", dir=folder)  # noqa: SIM115
        end = 0
        for tensor in tensors:
            place = _Place(end, tensor.shape, tensor.dtype, tensor.device)
            self._write(place, tensor)
            self._places.append(place)
            end += -(-place.bytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[chunk] for chunk in range(len(self)))

    def __getitem__(self, chunk: int, /) -> Tensor:
        place = self._places[chunk]
        view = mmap.mmap(self._file.fileno(), place.bytes, access=mmap.ACCESS_COPY, offset=place.offset)
        return torch.frombuffer(view, dtype=place.dtype).view(place.shape).to(place.device)

    def __setitem__(self, chunk: int, value: Tensor, /) -> None:
        place = self._places[chunk]
        if (value.shape, value.dtype) != (place.shape, place.dtype):
            raise ValueError(f"{value.dtype} {tuple(value.shape)} in place of {place.dtype} {tuple(place.shape)}")
        self._write(place, value)

    def _write(self, place: _Place, tensor: Tensor) -> None:
        """Not through a mapping: a full disk then is an error, not a signal."""
        with _clear_errors(self._folder):
            self._file.seek(place.offset)
            self._file.write(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
            self._file.flush()


@contextmanager
def _clear_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = "no space left on the disk" if is_disk_full(error) else f"not writable ({error.strerror})"
        raise ResourceError(f"{folder}: {why} for activations; free some and run again") from None
