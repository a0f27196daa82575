"""A path and the name of a runtime -> an open backend."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from ...converter.core.errors import UsageError
from .formats import LLAMA_CPP, ONNXRUNTIME, RUNTIMES, TORCH, backend_names
from .protocol import Backend


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
    known = sorted({runtime for runtimes in RUNTIMES.values() for runtime in runtimes})
    if name not in known:
        near = get_close_matches(name, known, 1)
        raise UsageError(f"unknown backend {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {known}"))
    if name not in backend_names(path):
        raise UsageError(f"{path}: {name} does not run this format; use {' or '.join(backend_names(path))}")
    if name == TORCH:
        from .torch_reference import open_torch

        return open_torch(path, device=device, dtype=dtype, threads=threads)
    if name == LLAMA_CPP:
        from .llama_cpp import LlamaCppBackend
        from .trial import check_survives

        if not tried:
            check_survives(path, name)
        return LlamaCppBackend(path, n_ctx=context, threads=threads, exact=exact)
    provider = "cuda" if device.startswith("cuda") else "cpu"
    if name == ONNXRUNTIME:
        from .onnxruntime import OnnxRuntimeBackend

        return OnnxRuntimeBackend(path, threads=threads, provider=provider)
    from .genai import GenAiBackend

    return GenAiBackend(path, threads=threads, provider=provider, max_length=context)


@contextmanager
def released(backend: Backend) -> Iterator[Backend]:
    """An open backend that is closed and freed whatever happens."""
    try:
        yield backend
    finally:
        backend.close()
        del backend
        gc.collect()
