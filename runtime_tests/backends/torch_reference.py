"""The reference backend: a transformers model, factored or dense, run by PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...converter.core.errors import InputError, ResourceError, UsageError
from .protocol import SEQUENCES, Logits, Tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DTYPES = ("float32", "bfloat16", "float16", "float64")


class TorchBackend:
    """Runs a causal language model of transformers on one sequence at a time.

    The model is moved to `device` and `dtype` in place and belongs to the backend until `close`.

    Args:
        model: the model; `open_torch` loads one from a checkpoint directory.
        device: torch device ("cpu", "cuda", "cuda:1", ...).
        dtype: one of `DTYPES`; float32 is what artifacts are compared with.
        threads: CPU threads of torch while the backend is open (torch knows only a process-wide number, which `close`
            puts back); None leaves it alone.

    Raises:
        UsageError: no such device or dtype.
        ResourceError: the device has not enough memory, or rounds products of float32 matrices.
    """

    name: str = "torch"

    def __init__(
        self, model: PreTrainedModel, *, device: str = "cpu", dtype: str = "float32", threads: int | None = None
    ) -> None:
        import torch

        from ...converter.machine.float32 import float32_products

        self._device = _device(device)
        self._threads_before = torch.get_num_threads() if threads is not None else None
        try:
            with float32_products(self._device):  # proves the device, once
                pass
            self._model: Any = model.to(device=self._device, dtype=torch_dtype(dtype)).eval()  # type: ignore[call-arg]
        except torch.OutOfMemoryError:
            raise ResourceError(f"{device}: not enough memory for the model in {dtype}; try --device cpu") from None
        if threads is not None:
            torch.set_num_threads(threads)
        self._cache: Any = None

    def window_logits(self, tokens: Tokens) -> Logits:
        """Logits (T, vocabulary) of every position of one window, from an empty state. The sequence is left alone.

        Raises:
            ResourceError: out of device memory.
        """
        logits: Logits = self._forward(tokens, use_cache=False).cpu().float().numpy()  # widened on the CPU
        return logits

    def reset(self) -> None:
        """Forget the sequence."""
        self._cache = None

    def feed(self, tokens: Tokens) -> Logits:
        """Append tokens (T,) to the sequence and return the logits (vocabulary,) after the last one.

        Raises:
            ResourceError: out of device memory.
        """
        logits: Logits = self._forward(tokens, use_cache=True)[-1].cpu().float().numpy()
        return logits

    def at_once(self, length: int) -> int:
        """Sequences that run together, whatever their length: their cache grows as they do."""
        return SEQUENCES

    def feed_all(self, tokens: Tokens) -> Logits:
        """`feed` for B sequences at once: append tokens (B, T), a row to each, and return logits (B, vocabulary).

        Raises:
            ResourceError: out of device memory.
        """
        logits: Logits = self._forward(tokens, use_cache=True).cpu().float().numpy()
        return logits

    def close(self) -> None:
        """Free the model. The backend cannot be used afterwards; closing twice is harmless."""
        import torch

        self._model = None
        self._cache = None
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)
            self._threads_before = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _forward(self, tokens: Tokens, *, use_cache: bool) -> torch.Tensor:
        """Run tokens and return logits: of (T,) from an empty state (T, vocabulary), else after the last of (B, T) or
        (T,) (B, vocabulary) or (1, vocabulary).
        """
        import torch

        from ...converter.machine.float32 import float32_settings

        if self._model is None:
            raise RuntimeError("the torch backend is closed")
        ids = torch.from_numpy(np.atleast_2d(np.ascontiguousarray(tokens, dtype=np.int64))).to(self._device)
        try:
            with torch.inference_mode(), float32_settings():
                if not use_cache:
                    logits: torch.Tensor = self._model(input_ids=ids, use_cache=False).logits[0]
                    return logits
                output = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        except torch.OutOfMemoryError:
            raise ResourceError(
                f"{self._device}: out of memory at {ids.numel()} tokens; use shorter windows or --device cpu"
            ) from None
        self._cache = output.past_key_values
        last: torch.Tensor = output.logits[:, -1]
        return last


def open_torch(
    path: Path | str, *, device: str = "cpu", dtype: str = "float32", threads: int | None = None
) -> TorchBackend:
    """Load a checkpoint directory, factored or dense, as a backend.

    Args:
        path: the checkpoint directory.
        device: torch device.
        dtype: one of `DTYPES`, whatever the checkpoint stores.
        threads: CPU threads, see `TorchBackend`.

    Raises:
        InputError: the directory is not a checkpoint, is damaged, or transformers cannot load it.
        UsageError: no such device or dtype.
        ResourceError: the device has not enough memory.
    """
    from ...converter.model.loading import load

    wanted = torch_dtype(dtype)
    _device(device)
    try:
        model = load(path, dtype=wanted)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: transformers cannot load this checkpoint ({_first_line(error)})") from error
    return TorchBackend(model, device=device, dtype=dtype, threads=threads)


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name.

    Raises:
        UsageError: not one of `DTYPES`.
    """
    import torch

    if name not in DTYPES:
        raise UsageError(f"unknown dtype {name!r}; known: {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _device(name: str) -> torch.device:
    import torch

    from ...converter.machine.device import check_gpu

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r} ({_first_line(error)})") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {name!r} asked for, but torch sees no CUDA device; use --device cpu")
    if device.type == "cuda":
        check_gpu(device)
    return device


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
