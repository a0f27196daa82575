"""Which device and dtype the converter computes with: always an argument, never assumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import ResourceError, UsageError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU.

    Raises:
        UsageError: not a device name.
        ResourceError: CUDA was asked for and is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: expected auto, cpu or cuda (or cuda:N)") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ResourceError(f"--device {name}: no CUDA device is available to PyTorch here; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: expected auto, cpu or cuda (or cuda:N)")
    return device


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware, several times faster than float32 ones."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(has is True and "bf16" in feature for feature, has in torch.cpu.get_capabilities().items())


@contextmanager
def fast_matmul() -> Iterator[None]:
    """Send float32 matmuls on the CPU to oneDNN, and put the setting back afterwards.

    PyTorch asks oneDNN only where bfloat16 products are allowed. oneDNN takes that freedom on processors with bfloat16
    matrix units; elsewhere it computes in float32, up to twice as fast as PyTorch's own choice of library.
    """
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
