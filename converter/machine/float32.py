"""Products of float32 matrices: computed in float32 on every device, and on the CPU by the faster of two libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from ..core.errors import ResourceError

ONEDNN_PRODUCTS = 1 << 22  # multiplications from which oneDNN's start-up time no longer shows
# what makes libraries round, whatever PyTorch's settings are
VARIABLES = "ONEDNN_DEFAULT_FPMATH_MODE, NVIDIA_TF32_OVERRIDE"


@contextmanager
def float32_products(device: torch.device | str, *, fast: bool = False) -> Iterator[None]:
    """Multiply float32 matrices in float32: `float32_settings`, with the proof that the device keeps to them.

    Args:
        device: that the products are computed on.
        fast: also send linears on the CPU to oneDNN, see `onednn_linears`.

    Raises:
        ResourceError: the device rounds all the same.
    """
    with float32_settings(), onednn_linears() if fast else nullcontext():
        check_products(device)
        yield


@contextmanager
def float32_settings() -> Iterator[None]:
    """Allow neither bfloat16 (oneDNN on processors with AMX, Arm) nor TF32 (CUDA) in products of float32 matrices.

    What the caller or an environment variable allowed is allowed again afterwards.
    """
    settings: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = "ieee"
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


PRODUCTS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matrices": torch.mm,
    "stacks of matrices": lambda a, b: torch.bmm(a[None], b[None]),
    "a linear": lambda a, b: nn.functional.linear(a, b.T.contiguous()),
}


def check_products(
    device: torch.device | str, products: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = PRODUCTS
) -> None:
    """Multiply matrices whose product is exact in float32 and in nothing shorter.

    Every entry of A is 1 + 2^-12, which bfloat16 (8 bits) and TF32 (11 bits) round to 1, every entry of B is 1: sums
    over 256 columns need 20 bits, so float32 gives 256 (1 + 2^-12) in any order of summation.

    Raises:
        ResourceError: a product differs.
    """
    a = torch.full((128, 256), 1 + 2**-12, device=device)
    b = torch.ones(256, 128, device=device)
    for name, product in products.items():
        if bool((product(a, b) != 256 * (1 + 2**-12)).any()):
            raise ResourceError(
                f"{device}: a product of float32 {name} comes out rounded to fewer bits; "
                f"unset what asks for that in the environment (such as {VARIABLES})"
            )


@contextmanager
def onednn_linears() -> Iterator[None]:
    """Send `nn.functional.linear` on large float32 matrices on an x86 CPU to oneDNN instead of MKL.

    MKL loses up to half its speed where the number of outputs is not a multiple of 16, as ranks are, on some
    processors; oneDNN does not, and is asked without the permission to round that PyTorch makes a condition elsewhere.
    """
    libraries: Any = torch.backends
    if not (libraries.mkldnn.is_available() and libraries.mkl.is_available()):  # MKL: on x86 alone
        yield
        return
    with _ToOneDNN():
        yield


class _ToOneDNN(TorchFunctionMode):
    """Replaces `linear` where `_suits`."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.linear and not kwargs and _suits(*args[:2]):
            x, weight, bias = (*args, None)[:3]
            compute: Any = _Linear.apply if torch.is_grad_enabled() else _linear
            return compute(x, weight, bias)
        return func(*args, **(kwargs or {}))


def _suits(x: Tensor, weight: Tensor) -> bool:
    """Whether a linear's product is a large one of float32 matrices, to be computed as such, on the CPU."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.dim() > 1
        and x.numel() * len(weight) >= ONEDNN_PRODUCTS
        and not torch.is_autocast_enabled("cpu")
    )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


class _Linear(torch.autograd.Function):
    """y = x W^T + b and its gradients; PyTorch knows none for the operator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            _linear(gradient, weight.T) if wants_x else None,
            rows.T @ x.flatten(0, -2) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )
