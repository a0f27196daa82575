"""A path and the name of a runtime -> an open backend."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ...converter.core.errors import UsageError
from .formats import GENAI, LLAMA_CPP, ONNXRUNTIME, TORCH, backend_names
from .protocol import Backend
from .trial import check_survives


@dataclass(frozen=True)
class Opening:
    """How a backend is opened, see `open_backend`."""

    threads: int
    context: int
    exact: bool
    device: str
    dtype: str

    @property
    def provider(self) -> str:
        """Of ONNX Runtime."""
        return "cuda" if self.device.startswith("cuda") else "cpu"


def _torch(path: Path, how: Opening) -> Backend:
    from .torch_reference import open_torch

    return open_torch(path, device=how.device, dtype=how.dtype, threads=how.threads)


def _llama_cpp(path: Path, how: Opening) -> Backend:
    from .llama_cpp import LlamaCppBackend

    return LlamaCppBackend(path, n_ctx=how.context, threads=how.threads, exact=how.exact)


def _onnxruntime(path: Path, how: Opening) -> Backend:
    from .onnxruntime import OnnxRuntimeBackend

    return OnnxRuntimeBackend(path, threads=how.threads, provider=how.provider)


def _genai(path: Path, how: Opening) -> Backend:
    from .genai import GenAiBackend

    return GenAiBackend(path, threads=how.threads, provider=how.provider, max_length=how.context)


BACKENDS: dict[str, Callable[[Path, Opening], Backend]] = {
    TORCH: _torch,
    LLAMA_CPP: _llama_cpp,
    ONNXRUNTIME: _onnxruntime,
    GENAI: _genai,
}
"""Runtime -> opens an artifact in it. Only that runtime is imported."""
TRIED = (LLAMA_CPP,)
"""Runtimes that some files make end the process they are in."""


def open_backend(
    path: Path,
    name: str,
    *,
    threads: int,
    context: int,
    exact: bool = True,
    device: str = "cpu",
    dtype: str = "float32",
    tried: bool = False,
) -> Backend:
    """Load an artifact into a runtime. Only that runtime is imported.

    Args:
        path: a GGUF file, an ONNX folder, or a checkpoint folder.
        name: one of `backend_names(path)`.
        threads: CPU threads.
        context: longest sequence that will be asked for, in tokens.
        exact: ask the runtime to compute as exactly as it can (for logits); False takes its defaults (for speed).
        device: "cpu" or "cuda"; llama.cpp is built for the CPU and ignores it.
        dtype: dtype of torch; the other runtimes take it from the artifact.
        tried: this process may be lost: skip the trial in another one, see trial.py.

    Raises:
        InputError: not an artifact, or the runtime refuses it.
        UsageError: no such runtime (names the nearest), or it does not run this format.
        ResourceError: the runtime is not there, or there is not enough memory.
    """
    if name not in BACKENDS:
        near, known = get_close_matches(name, BACKENDS, 1), sorted(BACKENDS)
        raise UsageError(f"unknown backend {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {known}"))
    if name not in backend_names(path):
        raise UsageError(f"{path}: {name} does not run this format; use {' or '.join(backend_names(path))}")
    if name in TRIED and not tried:
        check_survives(path, name)
    return BACKENDS[name](path, Opening(threads, context, exact, device, dtype))


@contextmanager
def released(backend: Backend) -> Iterator[Backend]:
    """An open backend that is closed and freed whatever happens."""
    try:
        yield backend
    finally:
        backend.close()
        del backend
        gc.collect()
