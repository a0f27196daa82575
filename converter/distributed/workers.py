"""The processes that share one job (`torchrun`): each has some of the windows and some of the linears.

Everything that holds for all of them goes through one object, an argument like the device is. Alone it does nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..core.errors import ResourceError, WorkerLostError

T = TypeVar("T")
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Parcel:
    """Tensors by name, and whatever else is said of them (picklable)."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Any = None


@dataclass(frozen=True)
class Workers:
    """One process and its place among those of the job.

    Every method that exchanges something has to be called by all of them, in the same order.

    Attributes:
        index: of this process, 0 to count - 1 (torchrun's RANK).
        count: how many there are.
        local_index: of this process on its machine: the number of its GPU.
    """

    index: int = 0
    count: int = 1
    local_index: int = 0

    @property
    def is_main_process(self) -> bool:
        """Whether this process is the one that writes files and reports."""
        return self.index == 0

    def part(self, items: Sequence[T], *, larger_first: bool = False) -> Sequence[T]:
        """This process's share of a sequence, contiguous; shares differ by one item at most.

        Args:
            items: the same everywhere.
            larger_first: the first processes, not the last, take one more where items cannot be divided evenly.
        """
        up = self.count - 1 if larger_first else 0
        start, stop = ((len(items) * i + up) // self.count for i in (self.index, self.index + 1))
        return items[start:stop]

    def owners(self, costs: Mapping[Key, float]) -> dict[Key, int]:
        """Who does what: the costliest task first, each for the process with the least to do so far."""
        load, owners = [0.0] * self.count, {}
        for key in sorted(costs, key=lambda key: -costs[key]):
            owners[key] = min(range(self.count), key=load.__getitem__)
            load[owners[key]] += costs[key]
        return owners

    def all_reduce_(self, tensor: Tensor) -> None:
        """The sum over all processes, in place; on the job's device."""
        if self.count > 1:
            import torch.distributed as dist

            with _connected():
                dist.all_reduce(tensor)

    def totals(self, values: Sequence[float]) -> list[float]:
        """Sums over all processes, in float64 and in the order of processes: the same bits everywhere."""
        return [sum(column) for column in zip(*self.gathered(list(values)), strict=True)]

    def gathered(self, value: T) -> list[T]:
        """What every process has, in their order. Picklable; tensors on the CPU."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        with _connected():
            dist.all_gather_object(found, value)
        return found

    def broadcast_object(self, make: Callable[[], T]) -> T:
        """What the writer makes, for all. Picklable; tensors on the CPU."""
        if self.count == 1:
            return make()
        import torch.distributed as dist

        found: list[Any] = [make() if self.is_main_process else None]
        with _connected():
            dist.broadcast_object_list(found, src=0)
        made: T = found[0]
        return made

    def sent(self, parcel: Parcel | None, source: int, device: torch.device) -> Parcel:
        """What one process has, for all.

        Args:
            parcel: of the process `source`; ignored elsewhere.
            source: who sends.
            device: the job's; where the tensors arrive.
        """
        if self.count == 1:
            assert parcel is not None
            return Parcel({name: tensor.to(device) for name, tensor in parcel.tensors.items()}, parcel.facts)
        import torch.distributed as dist

        header: list[Any] = [None]
        if self.index == source:
            assert parcel is not None
            header = [(parcel.facts, {name: (t.shape, t.dtype) for name, t in parcel.tensors.items()})]
        with _connected():
            dist.broadcast_object_list(header, src=source)
        facts, shapes = header[0]
        tensors = {}
        for name, (shape, dtype) in shapes.items():
            if self.index == source:
                assert parcel is not None
                tensors[name] = parcel.tensors[name].detach().to(device).contiguous()
            else:
                tensors[name] = torch.empty(shape, dtype=dtype, device=device)
            with _connected():  # as bytes: not every backend knows every dtype
                dist.broadcast(tensors[name].view(-1).view(torch.uint8), src=source)
        return Parcel(tensors, facts)

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Give all the writer's values, in place; on the job's device."""
        if self.count > 1:
            import torch.distributed as dist

            for tensor in tensors:
                values = tensor.detach().contiguous()
                with _connected():
                    dist.broadcast(values.view(-1).view(torch.uint8), src=0)
                tensor.detach().copy_(values)

    def main_process_first(self, make: Callable[[], T]) -> T:
        """Every process makes its own, one after the other: the first fills a cache, the others find it."""
        made: T | None = None
        for turn in range(self.count):
            if turn == self.index:
                made = make()
            self.barrier()
        assert made is not None
        return made

    def barrier(self) -> None:
        """Return when every process of the job has called it."""
        self.gathered(None)

    def check_shared(self, path: Path) -> None:
        """Wait for what the writer has made, and see it.

        Raises:
            ResourceError: it lies on a disk that this process does not see.
        """
        self.barrier()
        if not path.exists():
            raise ResourceError(f"{path}: is not seen by all machines of this job; choose a folder that they share")


ALONE = Workers()


@contextmanager
def _connected() -> Iterator[None]:
    """Say in one line that another process is gone, whatever the backend says."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # "[file:line] Connection closed by peer [address]. Advice."
        said = re.sub(r"^\[[^]]*\]\s*", "", str(error).splitlines()[0]) if str(error) else type(error).__name__
        raise WorkerLostError(
            f"another worker of this job is gone or does not answer; the same command goes on ({said.split('. ')[0]})"
        ) from None
