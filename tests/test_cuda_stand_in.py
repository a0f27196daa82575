"""The stand-in for a GPU fails where a GPU would, and computes what the CPU does."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

TWO_DEVICES = "Expected all tensors to be on the same device"


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(*shape or (2, 3), device="cuda")


def changed(x: torch.Tensor, index: Any, value: Any) -> torch.Tensor:
    x[index] = value
    return x


def unseen(x: torch.Tensor) -> torch.Tensor:
    with torch._C.DisableTorchFunction():
        return x + 1


CPU = torch.ones(2, 3)
MASK = CPU > 0
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "numpy": (lambda: ones().numpy(), TypeError, "can't convert cuda:0 device type tensor to numpy"),
    "asarray": (lambda: np.asarray(ones()), TypeError, "can't convert cuda:0"),
    "sum of two devices": (lambda: ones() + CPU, RuntimeError, TWO_DEVICES),
    "the other way round": (lambda: CPU + ones(), RuntimeError, TWO_DEVICES),
    "product of two devices": (lambda: ones() @ CPU.T, RuntimeError, TWO_DEVICES),
    "parts of two devices": (lambda: torch.cat([ones(), CPU]), RuntimeError, TWO_DEVICES),
    "numbers of two devices": (lambda: torch.stack([ones().sum(), CPU.sum()]), RuntimeError, TWO_DEVICES),
    "result on the other device": (lambda: torch.mm(ones(), ones().T, out=torch.ones(2, 2)), RuntimeError, TWO_DEVICES),
    "in place, into a number": (lambda: torch.ones(()).add_(ones().sum()), RuntimeError, TWO_DEVICES),
    "a function written in Python": (lambda: nn.functional.mse_loss(ones(), CPU), RuntimeError, TWO_DEVICES),
    "a module left behind": (lambda: nn.Linear(3, 2)(ones()), RuntimeError, TWO_DEVICES),
    "tokens left behind": (lambda: nn.Embedding(3, 2).to("cuda")(torch.tensor([1])), RuntimeError, TWO_DEVICES),
    "index on the device": (
        lambda: CPU[ones(1).long()],
        RuntimeError,
        "indices should be either on cpu or on the same",
    ),
    "values for a mask": (lambda: changed(ones(), MASK, torch.ones(6)), RuntimeError, "expected value to be on cuda:0"),
    "generator of the CPU": (
        lambda: torch.rand(2, device="cuda", generator=torch.Generator()),
        RuntimeError,
        "Expected a 'cuda' device type for generator",
    ),
    "generator of the device": (
        lambda: torch.rand(2, generator=torch.Generator("cuda")),
        RuntimeError,
        "Expected a 'cpu' device type for generator",
    ),
    "pinned": (lambda: ones().pin_memory(), RuntimeError, "cannot pin"),
    "gradient of the CPU": (lambda: ones().requires_grad_().exp().backward(CPU), RuntimeError, TWO_DEVICES),
    "more than there is": (lambda: ones(1000, 1000, 3), torch.OutOfMemoryError, "CUDA out of memory"),
    "no such GPU": (lambda: torch.cuda.mem_get_info("cuda:1"), RuntimeError, "invalid device ordinal"),
    "past __torch_function__": (lambda: unseen(ones()), AssertionError, "teach the stand-in"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_gpu_refuses(cuda_stand_in: ModuleType, name: str) -> None:
    work, error, words = REFUSED[name]
    with cuda_stand_in.StandIn(total=10**6), pytest.raises(error, match=words):
        work()


ALLOWED: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "number of the CPU": (lambda: ones() * torch.tensor(2.0), "cuda:0"),
    "index on the CPU": (lambda: ones()[torch.tensor([0])], "cuda:0"),
    "numbers as an index": (lambda: changed(ones(), [0], 5.0), "cuda:0"),
    "rows of the CPU": (lambda: changed(ones(), 0, torch.zeros(3)), "cuda:0"),
    "copy_": (lambda: ones().copy_(CPU), "cuda:0"),
    "copy_ back": (lambda: torch.zeros(2, 3).copy_(ones()), "cpu"),
    "to another tensor": (lambda: ones().to(CPU), "cpu"),
    "new_zeros": (lambda: ones().new_zeros(2), "cuda:0"),
    "zeros_like": (lambda: torch.zeros_like(ones()), "cuda:0"),
    "named results": (lambda: torch.linalg.qr(ones(3, 3)).Q, "cuda:0"),
    "rows": (lambda: next(iter(ones())), "cuda:0"),
    "transposed": (lambda: ones().T, "cuda:0"),
    "meta": (lambda: ones().to("meta"), "meta"),
    "tensor of a tensor": (lambda: torch.as_tensor(ones(), device="cpu"), "cpu"),
    "deepcopy": (lambda: copy.deepcopy(ones()), "cuda:0"),
}


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", ALLOWED)
def test_what_a_gpu_allows(name: str) -> None:
    work, device = ALLOWED[name]
    assert str(work().device) == device


@pytest.mark.usefixtures("gpu")
def test_what_goes_to_the_device_and_back_is_a_copy() -> None:
    x = torch.ones(3)
    there = x.to("cuda")
    there += 1
    back = there.cpu()
    back += 1
    assert (x.tolist(), there.tolist(), back.tolist()) == ([1.0] * 3, [2.0] * 3, [3.0] * 3)
    view = there[1:]
    view.zero_()
    assert there.tolist() == [2, 0, 0]


def trained(device: str) -> list[torch.Tensor]:
    """Weights and gradients of a small model after two steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)).to(device)
    assert all(isinstance(parameter, nn.Parameter) for parameter in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    seen: list[torch.Tensor] = []
    for _ in range(2):
        optimizer.zero_grad()
        hidden = model[1](model[0](torch.linspace(-1, 1, 20, device=device).view(5, 4)))
        hidden.register_hook(lambda gradient: seen.append(gradient))
        loss = nn.functional.cross_entropy(model[2](hidden), torch.arange(5, device=device) % 3)
        loss.backward()
        optimizer.step()
    (again,) = torch.autograd.grad(model(torch.ones(1, 4, device=device)).sum(), model[0].weight)
    found = [*model.parameters(), *(p.grad for p in model.parameters()), *seen, again]
    assert all(tensor.device.type == device for tensor in found)
    return [tensor.detach().cpu() for tensor in found]


@pytest.mark.usefixtures("gpu")
def test_gradients_and_steps_have_the_cpus_bits() -> None:
    assert all(torch.equal(a, b) for a, b in zip(trained("cpu"), trained("cuda"), strict=True))


@pytest.mark.usefixtures("gpu")
def test_modules_change_dtype_and_take_tensors_in() -> None:
    linear = nn.Linear(3, 3).to("cuda")
    weight = linear.weight
    linear.half()
    assert linear.weight is weight and weight.dtype == torch.float16 and weight.is_cuda
    linear.load_state_dict({"weight": ones(3, 3), "bias": ones(3)}, assign=True)
    assert linear(ones(1, 3)).tolist() == [[4.0] * 3]


@pytest.mark.usefixtures("gpu")
def test_autocast_is_of_the_device() -> None:
    x = ones(3, 3)
    with torch.autocast("cuda", torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16 and (torch.ones(3, 3) @ torch.ones(3, 3)).dtype == torch.float32
        with torch.autocast("cuda", enabled=False):
            assert (x @ x).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ x).dtype == torch.float32


def test_memory_is_counted_by_storage(cuda_stand_in: ModuleType) -> None:
    with cuda_stand_in.StandIn(total=100_000) as gpu:
        x = ones(1000)
        view = x[10:]
        assert torch.cuda.memory_allocated() == gpu.memory.allocated == 4096
        del x
        assert gpu.memory.allocated == 4096
        y = view.requires_grad_().exp()
        z = y.sum()
        del y  # the graph holds it
        assert gpu.memory.allocated == 2 * 4096 + 512
        del view, z
        gc.collect()
        assert gpu.memory.allocated == 0 and torch.cuda.max_memory_allocated() > 2 * 4096
        torch.cuda.reset_peak_memory_stats()
        assert torch.cuda.max_memory_allocated() == 0 and torch.cuda.mem_get_info() == (100_000, 100_000)
        with pytest.raises(torch.OutOfMemoryError):  # 3 kB of matrix, as much again for the vectors, twice that to work
            torch.linalg.eigh(torch.eye(80, device="cuda"))


def test_attention_with_fewer_heads_of_keys_holds_all_scores(cuda_stand_in: ModuleType) -> None:
    """But in the dtypes of flash attention."""
    for dtype, kept in ((torch.float32, True), (torch.bfloat16, False)):
        with cuda_stand_in.StandIn() as gpu:
            query, key = (torch.ones(1, heads, 100, 8, device="cuda", dtype=dtype) for heads in (4, 2))
            nn.functional.scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True)
            assert (gpu.memory.peak > 3 * 4 * 100 * 100 * 4) == kept


def test_every_wait_is_counted(gpu: Any) -> None:
    x = ones(3)
    assert x.sum().item() == 3 and bool(x[0] > 0) and x.tolist() == x[x > 0].cpu().tolist()
    assert gpu.waits == {"item": 1, "__bool__": 1, "tolist": 1, "mask": 1, "cpu": 1}


def test_several_devices_are_told_apart(cuda_stand_in: ModuleType) -> None:
    with cuda_stand_in.StandIn(count=2):
        x = torch.ones(2, device="cuda:1")
        assert str(x.device) == "cuda:1" and str((x + 1).device) == "cuda:1"
        with pytest.raises(RuntimeError, match="found at least two devices, cuda:0 and cuda:1"):
            ones(2) + x
        with torch.cuda.device(1):
            assert ones(2).device == x.device
        assert x.to("cuda:0").device == ones(2).device


def test_it_is_gone_afterwards(cuda_stand_in: ModuleType) -> None:
    with cuda_stand_in.StandIn():
        x = ones(2)
    assert not torch.cuda.is_available()
    with pytest.raises(AssertionError, match="after the device is gone"):
        x + 1
    with pytest.raises((AssertionError, RuntimeError)):
        ones(2)
