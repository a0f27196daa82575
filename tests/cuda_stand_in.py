"""A GPU that is not there: tensors that say `cuda`, are computed on the CPU, and fail where a GPU would.

    with StandIn() as gpu:
        x = torch.ones(3, device="cuda")
        x.numpy()        # TypeError, as with CUDA
        x + torch.ones(3)  # RuntimeError: tensors on two devices

PyTorch asks `__torch_function__` before it does anything with a tensor of a subclass, and a `TorchFunctionMode` before it
makes a tensor. Here both answer with the same function on the CPU tensor that a device tensor holds, so results,
gradients included, have the bits that the CPU gives. What is not the CPU's:

- A function is refused tensors of two devices. As on CUDA a CPU tensor without dimensions passes as a number, an index
  may lie on the CPU, and `copy_`, `to`, `cpu` and `cuda` go from one to the other, always as a copy.
- `numpy`, `np.asarray` and whatever else reads memory are refused without `.cpu()`.
- A generator draws on its own device only.
- `torch.autocast("cuda")` counts, `torch.autocast("cpu")` does not. The operations that it casts are the CPU's.
- Memory is counted, by storage and rounded as CUDA's allocator does; more than `total` is `torch.OutOfMemoryError`.
- Whenever the host waits for the device (`item`, `bool`, `tolist`, `cpu`, a mask as an index) is counted.

What it cannot show: kernels' own rounding, order of sums and speed; workspaces of cuBLAS and cuSOLVER, and memory lost
between tensors; what goes wrong between streams, and in the backward pass because CUDA runs it in another thread.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

GRAIN = 512  # bytes: CUDA's allocator gives multiples
CPU = torch.device("cpu")
Function = Callable[..., Any]

SAYS_ITS_DEVICE = {Tensor.device.__get__, Tensor.is_cuda.__get__, Tensor.is_cpu.__get__, Tensor.get_device}
READS_MEMORY = {Tensor.numpy, Tensor.__array__}
WAITS = {Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__}
WAITS |= {Tensor.nonzero, torch.nonzero, Tensor.__format__, Tensor.masked_select, torch.masked_select, torch.equal}
WAITS |= {Tensor.unique, torch.unique, torch.bincount, Tensor.equal}
MAKES_NOTHING = {torch._C._nn._parse_to}
"""On the device that they are told."""
INDEXES = {Tensor.__getitem__, Tensor.__setitem__}
TAKES_NO_NUMBERS = {torch.stack, torch.cat, torch.matmul, torch.linalg.solve}
"""Of CPU tensors without dimensions, beside device tensors."""


class DeviceTensor(torch.Tensor):
    """A tensor on the device; `inner` holds what the CPU computes with."""

    gpu: ClassVar[StandIn | None] = None
    inner: Tensor

    @staticmethod
    def __new__(cls: type[DeviceTensor], inner: Tensor, device: torch.device) -> DeviceTensor:
        made: DeviceTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=device
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_function__(cls, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert cls.gpu is not None, f"{func} after the device is gone"
        return cls.gpu.call(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func}: came past __torch_function__; teach the stand-in about it")


class _Generator(torch.Generator):
    """A generator that says which device it is for."""

    _device = CPU

    def __new__(cls, device: Any = CPU) -> _Generator:
        made: _Generator = super().__new__(cls)
        made._device = _indexed(torch.device(device))
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._device


class Memory:
    """Bytes that tensors take, now and at most since `forget_peak`.

    A storage counts from the first tensor on it that was seen to the end of the last, which may be one that autograd holds.
    """

    def __init__(self, total: int | None = None) -> None:
        self.total = total
        self.allocated = self.peak = 0

    def count(self, tensor: Tensor) -> None:
        """See a tensor."""
        storage = tensor.untyped_storage()
        if not hasattr(storage, "_counted"):
            size = -(-storage.nbytes() // GRAIN) * GRAIN
            self.take(size)
            storage._counted = True  # type: ignore[attr-defined]
            self.allocated += size
            weakref.finalize(storage, self._release, size)

    def take(self, size: int) -> None:
        """What a function takes while it runs."""
        if self.total is not None and self.allocated + size > self.total:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size} bytes. GPU 0 has a total capacity of {self.total} bytes "
                f"of which {self.total - self.allocated} bytes is free."
            )
        self.peak = max(self.peak, self.allocated + size)

    def forget_peak(self) -> None:
        """Begin anew."""
        self.peak = self.allocated

    def _release(self, size: int) -> None:
        self.allocated -= size


class StandIn:
    """The device, from `with` to the end of it.

    Args:
        total: bytes of its memory.
        capability: of its processor: (8, 0) is the first that multiplies bfloat16.
        count: how many there are, all alike.

    Attributes:
        memory: of the device.
        host: of the CPU's tensors that PyTorch was given meanwhile.
        waits: how often the host has waited, by function.
    """

    def __init__(self, total: int = 8 * 10**9, capability: tuple[int, int] = (8, 0), count: int = 1) -> None:
        self.memory, self.host = Memory(total), Memory()
        self.capability, self.count, self.current = capability, count, 0
        self.waits: dict[str, int] = {}
        self._special: dict[Function, Function] = {
            Tensor.to: self._to,
            Tensor.cpu: lambda x, *a, **k: self._to(x, "cpu"),
            Tensor.cuda: lambda x, device="cuda", *a, **k: self._to(x, device),
            Tensor.copy_: self._copy,
            Tensor.data.__set__: self._set_data,  # type: ignore[attr-defined]
            Tensor.pin_memory: self._pin,
            Tensor.register_hook: self._register_hook,
            Tensor.backward: self._backward,
            torch.autograd.grad: self._grad,
            torch._has_compatible_shallow_copy_type: lambda a, b: _on_device(a) == _on_device(b),
            Tensor.__repr__: lambda x, **k: f"{_inner(x)!r} on {x.device}",
            torch.nn.functional.scaled_dot_product_attention: self._attention,
        }

    def __enter__(self) -> StandIn:
        assert not torch.cuda.is_available(), "there is a GPU: use it"
        DeviceTensor.gpu = self
        with ExitStack() as stack:
            stack.enter_context(patch.object(torch, "Generator", _Generator))
            for name, fake in self._cuda().items():
                stack.enter_context(patch.object(torch.cuda, name, fake))
            stack.enter_context(_Answers(self))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        DeviceTensor.gpu = None

    def call(self, func: Function, args: Any, kwargs: dict[str, Any]) -> Any:
        """One function of PyTorch."""
        tensors = list(_tensors((args, kwargs)))
        placed = [t for t in tensors if isinstance(t, DeviceTensor)]
        asked = None if func in MAKES_NOTHING else kwargs.get("device")
        if not placed and asked is None and "generator" not in kwargs and func not in self._special:
            return self._seen(func(*args, **kwargs))
        if func in self._special and (placed or func in (Tensor.to, Tensor.cuda, Tensor.pin_memory)):
            return self._special[func](*args, **kwargs)
        if func in SAYS_ITS_DEVICE and placed:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        if func in READS_MEMORY and placed:
            raise TypeError(
                f"can't convert {placed[0].device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to "
                "host memory first."
            )
        device = _indexed(torch.device(asked)) if asked is not None else placed[0].device if placed else CPU
        if placed and (asked is None or device.type == "cuda"):
            self._check_devices(func, args, kwargs, tensors, placed[0].device)
        self._check_generator(kwargs.get("generator"), device)
        if func in WAITS and placed:
            self._wait(func.__name__)
        if asked is not None:
            kwargs = {**kwargs, "device": CPU if device.type == "cuda" else device}
        plain_args, plain_kwargs = _mapped(_inner, (args, kwargs))
        with self._autocast(device):
            result = func(*plain_args, **plain_kwargs)
        if asked is not None and _on_device(result) is None and placed:  # torch.tensor(x), torch.as_tensor(x, device=)
            result = _mapped(torch.clone, result)
        assert asked is None or any(True for _ in _tensors(result)), f"{func}: makes no tensor; say so above"
        return self.put(result, device) if device.type == "cuda" else self._seen(result)

    def _seen(self, result: Any) -> Any:
        for tensor in _tensors(result):
            if tensor.device == CPU and tensor.layout == torch.strided:
                self.host.count(tensor)
        return result

    def put(self, result: Any, device: torch.device) -> Any:
        """Whatever a function gave, its tensors on the device."""
        return _mapped(lambda tensor: self._placed(tensor, device), result)

    def _placed(self, inner: Tensor, device: torch.device) -> Tensor:
        if isinstance(inner, DeviceTensor) or inner.is_meta:
            return inner
        known = inner.__dict__.get("_on_device")
        made: DeviceTensor | None = None if known is None else known()
        if made is None:
            self.memory.count(inner)
            with torch._C.DisableTorchFunctionSubclass():
                made = DeviceTensor(inner, device)
            inner.__dict__["_on_device"] = weakref.ref(made)
        return made

    def _wait(self, what: str) -> None:
        self.waits[what] = self.waits.get(what, 0) + 1

    def _check_devices(
        self, func: Function, args: Any, kwargs: dict[str, Any], tensors: list[Tensor], device: torch.device
    ) -> None:
        name = getattr(func, "__name__", str(func))
        if func in INDEXES:
            self._check_index(func, args)
            return
        changed = [*(args[:1] if _in_place(name) else ()), *_tensors(kwargs.get("out"))]
        for tensor in tensors:
            number = tensor.device == CPU and tensor.dim() == 0 and func not in TAKES_NO_NUMBERS
            if tensor.device != device and (not number or any(tensor is one for one in changed)):
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, "
                    f"{device} and {tensor.device}! (in {name})"
                )

    def _check_index(self, func: Function, args: Any) -> None:
        target, index, *values = args
        used = list(_tensors(index))
        if any(one.device not in (CPU, target.device) for one in used):
            raise RuntimeError(
                f"indices should be either on cpu or on the same device as the indexed tensor ({target.device})"
            )
        if _on_device(target) and any(one.dtype in (torch.bool, torch.uint8) for one in used if _on_device(one)):
            self._wait("mask")
        by_numbers = bool(used) or any(
            isinstance(one, list) for one in (index if isinstance(index, tuple) else [index])
        )
        for value in values:
            if by_numbers and isinstance(value, Tensor) and value.device != target.device and value.dim():
                raise RuntimeError(
                    f"expected value to be on {target.device}, as the indexed tensor, not {value.device}"
                )

    def _check_generator(self, generator: torch.Generator | None, device: torch.device) -> None:
        if generator is not None and device.type != "meta" and generator.device != device:
            raise RuntimeError(f"Expected a '{device.type}' device type for generator but found '{generator.device}'")

    def _autocast(self, device: torch.device) -> Any:
        """What autocast says of the device, said of the CPU."""
        asked, other = torch.is_autocast_enabled("cuda"), torch.is_autocast_enabled("cpu")
        if device.type != "cuda" or not (asked or other):
            return ExitStack()
        return torch.autocast("cpu", torch.get_autocast_dtype("cuda") if asked else None, enabled=asked)

    def _to(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        target, rest = x.device, []
        for one in (*args, *([kwargs.pop("device")] if "device" in kwargs else [])):
            if isinstance(one, str | torch.device):
                target = _indexed(torch.device(one))
            elif isinstance(one, Tensor):
                target, rest = one.device, [one.dtype]
            elif isinstance(one, torch.dtype):
                rest = [one]
        if x.device == target:
            return self.put(_inner(x).to(*rest, **kwargs), target) if target.type == "cuda" else x.to(*rest, **kwargs)
        if target.type not in ("cpu", "cuda"):
            return _inner(x).to(target, *rest, **kwargs)
        if target == CPU:
            self._wait("cpu")
        else:
            self._seen(x)
        moved = _inner(x).to(*rest, **kwargs)
        moved = moved.clone() if moved.untyped_storage()._cdata == _inner(x).untyped_storage()._cdata else moved
        return self.put(moved, target) if target.type == "cuda" else self._seen(moved)

    def _copy(self, x: Tensor, source: Tensor, *args: Any) -> Tensor:
        if x.device == CPU:
            self._wait("copy_")
        _inner(x).copy_(_inner(source), *args)
        return x

    def _set_data(self, x: Tensor, value: Tensor) -> None:
        if x.device != value.device:
            raise RuntimeError("set_data: incompatible tensor type: they are on two devices")
        _inner(x).data = _inner(value)

    def _pin(self, x: Tensor, *args: Any) -> Tensor:
        if _on_device(x):
            raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
        return x.clone()

    def _register_hook(self, x: Tensor, hook: Function) -> Any:
        device = x.device

        def on_device(gradient: Tensor) -> Tensor | None:
            given = hook(self.put(gradient, device))
            return None if given is None else _inner(given)

        return _inner(x).register_hook(on_device)  # type: ignore[no-untyped-call]

    def _backward(self, x: Tensor, gradient: Tensor | None = None, **options: Any) -> None:
        self._run_backward(x, gradient, (), accumulate_grad=True, allow_unreachable=True)

    def _grad(self, outputs: Any, inputs: Any, grad_outputs: Any = None, **options: Any) -> tuple[Tensor, ...]:
        ((outputs,), (inputs,), (grad_outputs,)) = (
            list(_tensors(one)) or [None] for one in (outputs, inputs, grad_outputs)
        )
        found = self._run_backward(outputs, grad_outputs, (_inner(inputs),), accumulate_grad=False)
        return self.put(found, inputs.device)

    def _run_backward(self, x: Tensor, gradient: Tensor | None, inputs: tuple[Tensor, ...], **options: Any) -> Any:
        self._check_devices(torch.autograd.grad, (), {}, [x] if gradient is None else [x, gradient], x.device)
        given = torch.ones_like(_inner(x)) if gradient is None else _inner(gradient)
        with _Answers(self):  # hooks and what checkpointing computes anew
            return torch.autograd.graph._engine_run_backward((_inner(x),), (given,), False, False, inputs, **options)

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        """CUDA's kernels but flash attention, which takes no float32, want as many heads of keys as of queries."""
        half = query.dtype != torch.float32 or torch.is_autocast_enabled("cuda")
        flash = half and self.capability >= (8, 0)
        if query.shape[1] != key.shape[1] and not flash:
            self.memory.take(3 * query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2] * query.element_size())
        self._check_devices(torch.matmul, (), {}, [query, key, value], query.device)
        with self._autocast(query.device):
            found = torch.nn.functional.scaled_dot_product_attention(
                *(_inner(x) for x in (query, key, value)), *_mapped(_inner, args), **_mapped(_inner, options)
            )
        return self.put(found, query.device)

    def _cuda(self) -> dict[str, Any]:
        """What `torch.cuda` says of it."""
        memory, (major, minor) = self.memory, self.capability
        properties = SimpleNamespace(
            name="stand-in", major=major, minor=minor, total_memory=self.memory.total, multi_processor_count=1
        )

        def check(device: Any = None) -> int:
            index = device if isinstance(device, int) else None if device is None else torch.device(device).index
            index = self.current if index is None else index
            if not 0 <= index < self.count:
                raise RuntimeError("CUDA error: invalid device ordinal")
            return index

        def set_device(device: Any) -> None:
            self.current = check(device)

        return {
            "_lazy_init": lambda: None,
            "_initialized": True,
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "device_count": lambda: self.count,
            "current_device": lambda: self.current,
            "set_device": set_device,
            "device": _CurrentDevice,
            "get_device_name": lambda device=None: properties.name,
            "get_device_properties": lambda device=None: (check(device), properties)[1],
            "get_device_capability": lambda device=None: (check(device), self.capability)[1],
            "mem_get_info": lambda device=None: (check(device), (memory.total - memory.allocated, memory.total))[1],
            "memory_allocated": lambda device=None: memory.allocated,
            "memory_reserved": lambda device=None: memory.allocated,
            "max_memory_allocated": lambda device=None: memory.peak,
            "max_memory_reserved": lambda device=None: memory.peak,
            "reset_peak_memory_stats": lambda device=None: memory.forget_peak(),
            "empty_cache": lambda: None,
            "synchronize": lambda device=None: self._wait("synchronize"),
            "manual_seed": lambda seed: None,
            "manual_seed_all": lambda seed: None,
            "get_rng_state": lambda device="cuda": torch.get_rng_state(),
            "set_rng_state": lambda state, device="cuda": torch.set_rng_state(state),
            "is_current_stream_capturing": lambda: False,
        }


class _Answers(TorchFunctionMode):
    """Has every function of PyTorch ask the device first."""

    def __init__(self, gpu: StandIn) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.gpu.call(func, args, kwargs or {})


class _CurrentDevice:
    """`with torch.cuda.device(1):`"""

    def __init__(self, device: Any) -> None:
        self.device = device

    def __enter__(self) -> None:
        self.before = torch.cuda.current_device()
        torch.cuda.set_device(self.device)

    def __exit__(self, *error: object) -> None:
        torch.cuda.set_device(self.before)


def _indexed(device: torch.device) -> torch.device:
    """CUDA's devices have a number."""
    return torch.device("cuda", torch.cuda.current_device()) if device == torch.device("cuda") else device


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, DeviceTensor) else x


def _on_device(x: Any) -> bool:
    return isinstance(x, DeviceTensor)


def _in_place(name: str) -> bool:
    return (name.endswith("_") and not name.endswith("__")) or (name.startswith("__i") and name not in NOT_IN_PLACE)


NOT_IN_PLACE = ("__int__", "__index__", "__invert__")


def _tensors(given: Any) -> Iterator[Tensor]:
    """Of arguments, however deep."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, tuple | list):
        for one in given:
            yield from _tensors(one)
    elif isinstance(given, dict):
        yield from _tensors(list(given.values()))


def _mapped(change: Function, given: Any) -> Any:
    """Arguments or results with their tensors changed."""
    if isinstance(given, Tensor):
        return change(given)
    if isinstance(given, list):
        return [_mapped(change, one) for one in given]
    if isinstance(given, dict):
        return {key: _mapped(change, one) for key, one in given.items()}
    if isinstance(given, tuple):
        changed = [_mapped(change, one) for one in given]
        return type(given)(*changed) if hasattr(given, "_fields") else type(given)(changed)
    return given
