"""Which device and dtype the converter computes with: always an argument, never assumed."""

from __future__ import annotations

import torch

from ..core.errors import ResourceError, UsageError
from ..distributed.workers import ALONE, Workers

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(name: str, workers: Workers = ALONE) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU; processes that share a machine take a GPU each.

    Raises:
        UsageError: not a device name, or one GPU for several processes.
        ResourceError: CUDA was asked for and is not there or does not work, or has fewer GPUs than processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: expected auto, cpu or cuda (or cuda:N)") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: expected auto, cpu or cuda (or cuda:N)")
    if device.type == "cpu":
        return device
    if not torch.cuda.is_available():
        raise ResourceError(f"--device {name}: no CUDA device is available to PyTorch here; use --device cpu")
    chosen = device if workers.count == 1 else _own_gpu(device, workers)
    check_gpu(chosen)
    return chosen


def _own_gpu(device: torch.device, workers: Workers) -> torch.device:
    """The GPU of this process."""
    if device.index is not None:
        raise UsageError(f"--device {device}: each process takes a GPU of its own; use --device cuda")
    if workers.local_index >= torch.cuda.device_count():
        raise ResourceError(
            f"this machine has {torch.cuda.device_count()} GPUs for more processes; use --nproc-per-node gpu"
        )
    return torch.device("cuda", workers.local_index)


def check_gpu(device: torch.device) -> None:
    """See that a GPU computes: it may be too old for this PyTorch, or another process may have it to itself.

    Raises:
        ResourceError: there is none of that number, or it does not.
    """
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise ResourceError(f"--device {device}: this machine has {count}, counted from 0; use --device cuda")
    try:
        float(torch.ones(1, device=device).sum())
    except RuntimeError as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise ResourceError(f"--device {device}: does not compute here ({said}); use --device cpu") from None


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware, several times faster than float32 ones."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(has is True and "bf16" in feature for feature, has in torch.cpu.get_capabilities().items())
