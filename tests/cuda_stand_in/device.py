"""The device: its tensors, and what it does with every function of PyTorch."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ClassVar
from unittest.mock import patch

import torch
import torch.distributed
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .arguments import in_place, mapped, parts
from .arguments import tensors as tensors_of
from .libraries import Generator, accelerator, cuda, distributed, indexed
from .memory import Memory

CPU = torch.device("cpu")
Function = Callable[..., Any]
attention = torch.nn.functional.scaled_dot_product_attention

SAYS_ITS_DEVICE = {Tensor.device.__get__, Tensor.is_cuda.__get__, Tensor.is_cpu.__get__, Tensor.get_device}
DESCRIBES = {
    getattr(Tensor, name).__get__
    for name in ("shape", "dtype", "ndim", "layout", "requires_grad", "is_leaf", "grad_fn")
} | {Tensor.dim, Tensor.size, Tensor.stride, Tensor.numel, Tensor.element_size, Tensor.__len__, Tensor.is_contiguous}
DESCRIBES |= {Tensor.is_floating_point, Tensor.is_complex}
READS_MEMORY = {Tensor.numpy, Tensor.__array__}
WAITS = {Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__}
WAITS |= {Tensor.nonzero, torch.nonzero, Tensor.__format__, Tensor.masked_select, torch.masked_select, torch.equal}
INDEXES = {Tensor.__getitem__, Tensor.__setitem__}
TAKES_NO_NUMBERS = {torch.stack, torch.cat, torch.matmul, torch.linalg.solve}
"""Of CPU tensors without dimensions, beside device tensors."""
MAKES_NOTHING = {torch._C._nn._parse_to}
"""On the device that they are told."""
WORKSPACE = {torch.linalg.eigh: 3, torch.linalg.eigvalsh: 3, torch.linalg.svd: 4, torch.linalg.qr: 1}
"""In sizes of the matrix, the copy that it works on among them."""


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


class StandIn:
    """The device, from `with` to the end of it.

    Args:
        total: bytes of its memory.
        capability: of its processor: (8, 0) is the first that multiplies bfloat16.
        count: how many there are, all alike; their memory is counted as one.
        record: keep the names of the operations that it runs.

    Attributes:
        memory: of the device.
        host: of the CPU's tensors that PyTorch was given meanwhile.
        waits: how often the host has waited, by function.
        operations: of PyTorch's dispatcher, where they are recorded.
    """

    def __init__(
        self, total: int = 8 * 10**9, capability: tuple[int, int] = (8, 0), count: int = 1, record: bool = False
    ) -> None:
        self.memory, self.host = Memory(total), Memory()
        self.capability, self.count = capability, count
        self.waits: dict[str, int] = {}
        self.operations: set[str] = set()
        self._recorder = _Recorder(self.operations) if record else None
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
        }

    def __enter__(self) -> StandIn:
        assert not torch.cuda.is_available(), "there is a GPU: use it"
        DeviceTensor.gpu = self
        with ExitStack() as stack:
            for module, fakes in self._libraries().items():
                for name, fake in fakes.items():
                    stack.enter_context(patch.object(module, name, fake))
            stack.enter_context(_Answers(self))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        DeviceTensor.gpu = None

    def call(self, func: Function, args: Any, kwargs: dict[str, Any]) -> Any:
        """One function of PyTorch."""
        if func in DESCRIBES:
            return func(_inner(args[0]), *args[1:], **kwargs)
        tensors = tensors_of((args, kwargs))
        placed = [tensor for tensor in tensors if _on_device(tensor)]
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
        device = indexed(torch.device(asked)) if asked is not None else placed[0].device if placed else CPU
        if placed and (asked is None or device.type == "cuda"):
            self._check_devices(func, args, kwargs, tensors, placed[0].device)
        if placed:
            self._note(func, args)
        self._check_generator(kwargs.get("generator"), device)
        if asked is not None:
            kwargs = {**kwargs, "device": CPU if device.type == "cuda" else device}
        plain_args, plain_kwargs = mapped(_inner, (args, kwargs))
        with self._recorder or ExitStack(), self._autocast(device):
            result = func(*plain_args, **plain_kwargs)
        assert asked is None or tensors_of(result), f"{func}: makes no tensor; say so above"
        if asked is not None and placed:  # torch.tensor(x), torch.as_tensor(x, device="cpu")
            result = mapped(torch.clone, result)
        return self.put(result, device) if device.type == "cuda" else self._seen(result)

    def put(self, result: Any, device: torch.device) -> Any:
        """Whatever a function gave, its tensors on the device."""
        return mapped(lambda tensor: self._placed(tensor, device), result)

    def _placed(self, inner: Tensor, device: torch.device) -> Tensor:
        if _on_device(inner) or inner.is_meta:
            return inner
        known = inner.__dict__.get("_on_device")
        made: DeviceTensor | None = None if known is None else known()
        if made is None:
            self.memory.count(inner)
            with torch._C.DisableTorchFunctionSubclass():
                made = DeviceTensor(inner, device)
            inner.__dict__["_on_device"] = weakref.ref(made)
        return made

    def _seen(self, result: Any) -> Any:
        for tensor in tensors_of(result):
            if tensor.device == CPU and tensor.layout == torch.strided:
                self.host.count(tensor)
        return result

    def _note(self, func: Function, args: Any) -> None:
        """What a function costs beside its result."""
        if func in WAITS:
            self._wait(func.__name__)
        if func in WORKSPACE:
            self.memory.take(WORKSPACE[func] * args[0].numel() * args[0].element_size())
        if func is attention:
            # CUDA's kernels but flash attention, which takes no float32, want as many heads of keys as of queries
            query, key = args[:2]
            half = query.dtype != torch.float32 or torch.is_autocast_enabled("cuda")
            if query.shape[1] != key.shape[1] and not (half and self.capability >= (8, 0)):
                scores = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2]
                self.memory.take(3 * scores * query.element_size())

    def _wait(self, what: str) -> None:
        self.waits[what] = self.waits.get(what, 0) + 1

    def _check_devices(
        self, func: Function, args: Any, kwargs: dict[str, Any], tensors: list[Tensor], device: torch.device
    ) -> None:
        name = getattr(func, "__name__", str(func))
        if func in INDEXES:
            self._check_index(func, args)
            return
        changed = [*(args[:1] if in_place(name) else ()), *tensors_of(kwargs.get("out"))]
        for tensor in tensors:
            number = tensor.device == CPU and tensor.dim() == 0 and func not in TAKES_NO_NUMBERS
            if tensor.device != device and (not number or any(tensor is one for one in changed)):
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, "
                    f"{device} and {tensor.device}! (in {name})"
                )

    def _check_index(self, func: Function, args: Any) -> None:
        target, index, *values = args
        used = tensors_of(index)
        if any(one.device not in (CPU, target.device) for one in used):
            raise RuntimeError(
                f"indices should be either on cpu or on the same device as the indexed tensor ({target.device})"
            )
        if any(one.dtype in (torch.bool, torch.uint8) for one in used if _on_device(one)):
            self._wait("mask")
        by_numbers = bool(used) or any(isinstance(part, list) for part in parts(index))
        for value in tensors_of(values):
            if by_numbers and value.device != target.device and value.dim():
                raise RuntimeError(f"expected value to be on {target.device}, not on {value.device}")

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
        target, dtype = x.device, kwargs.get("dtype")
        for one in (*args, kwargs.get("device"), kwargs.get("other")):
            if isinstance(one, str | torch.device):
                target = indexed(torch.device(one))
            elif isinstance(one, Tensor):
                target, dtype = one.device, one.dtype
            elif isinstance(one, torch.dtype):
                dtype = one
        dtype, crosses = dtype or x.dtype, x.device != target
        if target.type not in ("cpu", "cuda"):
            return _inner(x).to(target, dtype)
        if crosses and target == CPU:
            self._wait("cpu")
        moved = _inner(x).to(dtype, copy=kwargs.get("copy", False))
        if crosses and dtype == x.dtype:
            moved = _copied(_inner(x))
        self._seen(x)
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
            return mapped(_inner, hook(self.put(gradient, device)))

        return _inner(x).register_hook(on_device)  # type: ignore[no-untyped-call]

    def _backward(self, x: Tensor, gradient: Tensor | None = None, **options: Any) -> None:
        self._run_backward(x, gradient, (), accumulate_grad=True, allow_unreachable=True)

    def _grad(self, outputs: Any, inputs: Any, grad_outputs: Any = None, **options: Any) -> Any:
        (output,), (x,), (gradient,) = (tensors_of(one) or [None] for one in (outputs, inputs, grad_outputs))
        return self.put(self._run_backward(output, gradient, (_inner(x),), accumulate_grad=False), x.device)

    def _run_backward(self, x: Tensor, gradient: Tensor | None, inputs: tuple[Tensor, ...], **options: Any) -> Any:
        self._check_devices(torch.autograd.grad, (), {}, [x] if gradient is None else [x, gradient], x.device)
        given = torch.ones_like(_inner(x)) if gradient is None else _inner(gradient)
        with self._recorder or ExitStack(), _Answers(self):  # for hooks, and for what checkpointing computes anew
            return torch.autograd.graph._engine_run_backward((_inner(x),), (given,), False, False, inputs, **options)

    def _libraries(self) -> dict[Any, dict[str, Any]]:
        """What `torch.cuda` says of it, and how `torch.distributed` exchanges its tensors."""
        asked = {torch.cuda: cuda(self), torch.accelerator: accelerator(), torch.distributed: distributed()}
        return {**asked, torch: {"Generator": Generator}}


class _Answers(TorchFunctionMode):
    """Has every function of PyTorch ask the device first."""

    def __init__(self, gpu: StandIn) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.gpu.call(func, args, kwargs or {})


class _Recorder(TorchDispatchMode):
    """Keeps the names of operations."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def _copied(x: Tensor) -> Tensor:
    """A copy that begins as many bytes behind a multiple of 64 as the original: products may round by that."""
    spare = 64 // x.element_size()
    room = x.new_empty(x.numel() + spare)
    ahead = (x.data_ptr() - room.data_ptr()) % 64 // x.element_size()
    return room[ahead : ahead + x.numel()].view(x.shape).copy_(x)


def _on_device(x: Any) -> bool:
    return isinstance(x, DeviceTensor)


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, DeviceTensor) else x
