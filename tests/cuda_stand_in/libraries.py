"""What PyTorch's modules say of the device: `torch.cuda`, `torch.distributed`, `torch.Generator`."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from .device import StandIn

CPU = torch.device("cpu")


def cuda(gpu: StandIn) -> dict[str, Any]:
    """Names of `torch.cuda`."""
    memory, (major, minor), current = gpu.memory, gpu.capability, [0]
    properties = SimpleNamespace(name="stand-in", major=major, minor=minor, total_memory=memory.total)

    def number(device: Any = None) -> int:
        index = device if isinstance(device, int) else None if device is None else torch.device(device).index
        index = current[0] if index is None else index
        if not 0 <= index < gpu.count:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return index

    def of(value: Callable[[], Any]) -> Callable[..., Any]:
        """A function of a device."""

        def asked(device: Any = None) -> Any:
            number(device)
            return value()

        return asked

    def set_device(device: Any) -> None:
        current[0] = number(device)

    return {
        "_lazy_init": lambda: None,
        "_initialized": True,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: gpu.count,
        "current_device": lambda: current[0],
        "set_device": set_device,
        "device": _CurrentDevice,
        "get_device_name": of(lambda: properties.name),
        "get_device_properties": of(lambda: properties),
        "get_device_capability": of(lambda: gpu.capability),
        "mem_get_info": of(lambda: (memory.free, memory.total)),
        "memory_allocated": of(lambda: memory.allocated),
        "memory_reserved": of(lambda: memory.allocated),
        "max_memory_allocated": of(lambda: memory.peak),
        "max_memory_reserved": of(lambda: memory.peak),
        "reset_peak_memory_stats": of(memory.forget_peak),
        "empty_cache": lambda: None,
        "synchronize": of(lambda: None),
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device="cuda": torch.get_rng_state(),
        "set_rng_state": lambda state, device="cuda": torch.set_rng_state(state),
        "is_current_stream_capturing": lambda: False,
    }


def accelerator() -> dict[str, Any]:
    """Names of `torch.accelerator`, which a PyTorch that was built for CUDA asks for the driver."""
    stream = SimpleNamespace(is_capturing=lambda: False)
    return {"current_stream": lambda device=None: stream}


def distributed() -> dict[str, Any]:
    """Names of `torch.distributed`: gloo does the work of NCCL, on what the device tensors hold."""
    join, all_reduce, broadcast = dist.init_process_group, dist.all_reduce, dist.broadcast

    def inner(tensor: Tensor) -> Tensor:
        return getattr(tensor, "inner", tensor)

    return {
        "init_process_group": lambda backend, **options: join(backend.replace("cuda:nccl", "cuda:gloo"), **options),
        "all_reduce": lambda tensor, *args, **options: all_reduce(inner(tensor), *args, **options),
        "broadcast": lambda tensor, *args, **options: broadcast(inner(tensor), *args, **options),
    }


class _CurrentDevice:
    """`with torch.cuda.device(1):`"""

    def __init__(self, device: Any) -> None:
        self.device = device

    def __enter__(self) -> None:
        self.before = torch.cuda.current_device()
        torch.cuda.set_device(self.device)

    def __exit__(self, *error: object) -> None:
        torch.cuda.set_device(self.before)


def indexed(device: torch.device) -> torch.device:
    """CUDA's devices have a number."""
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


class Generator(torch.Generator):
    """A generator that says which device it is for."""

    _device = CPU

    def __new__(cls, device: Any = CPU) -> Generator:
        made: Generator = super().__new__(cls)
        made._device = indexed(torch.device(device))
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """As asked for."""
        return self._device
