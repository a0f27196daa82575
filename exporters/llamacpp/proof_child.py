"""Runs tiny models in a build of llama.cpp and keeps their logits: in a process of its own, which may be lost.

`python -m lowrank_export.exporters.llamacpp.proof_child FOLDER`, where FOLDER/job.json names the build's folder,
runs and tokens. Each run's name stands on stdout before it starts; its logits lie in FOLDER/NAME.npy when it has ended.
FOLDER/gpu says that the build computes on a GPU.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...converter.core.errors import ResourceError

JOB, GPU = "job.json", "gpu"
CPU_SECONDS = 600
F32_TYPE = 0
NO_FLASH_ATTENTION = 0


@dataclass(frozen=True)
class Run:
    """One prompt in one model.

    Attributes:
        model: GGUF file.
        tokens: length of the prompt.
        threads: CPU threads.
        exact: keys and values in float32 and plain attention; False takes llama.cpp's defaults.
        repack: whether weights are put into the order that special kernels (AMX among them) want, the default.
    """

    model: str
    tokens: int
    threads: int
    exact: bool
    repack: bool = True

    @property
    def name(self) -> str:
        """Of the file that holds its logits."""
        return "-".join([Path(self.model).stem, *(str(int(value)) for value in list(asdict(self).values())[1:])])


def run_all(api: Any, runs: list[Run], tokens: list[int], out: Path) -> None:
    """Run them in order; models and contexts that neighbors share are made once."""
    model = context = None
    before: Run | None = None
    for run in runs:
        sys.stdout.write(run.name + "\n")
        sys.stdout.flush()
        if before is None or (run.model, run.repack) != (before.model, before.repack):
            _free(api, model, context)
            context, model = None, _load(api, run)
        if context is None or before is None or (run.threads, run.exact) != (before.threads, before.exact):
            _free(api, None, context)
            context = _context(api, model, run, len(tokens))
        logits = _logits(api, model, context, tokens[: run.tokens])
        try:
            np.save(out / f"{run.name}.npy", logits)
        except OSError as error:  # says nothing about the library
            raise ResourceError(str(error)) from None
        before = run
    _free(api, model, context)


def _load(api: Any, run: Run) -> Any:
    options = api.llama_model_default_params()
    options.use_extra_bufts = run.repack
    model = api.llama_model_load_from_file(run.model.encode(), options)
    if not model:
        raise RuntimeError("the library refuses the model")
    return model


def _context(api: Any, model: Any, run: Run, length: int) -> Any:
    options = api.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = length
    options.n_threads = options.n_threads_batch = run.threads
    if run.exact:
        options.type_k = options.type_v = F32_TYPE
        options.flash_attn_type = NO_FLASH_ATTENTION
    context = api.llama_init_from_model(model, options)
    if not context:
        raise RuntimeError("the library makes no context")
    return context


def _logits(api: Any, model: Any, context: Any, tokens: list[int]) -> np.ndarray:
    """Logits (T, vocabulary) after an empty state."""
    count = len(tokens)
    api.llama_memory_clear(api.llama_get_memory(context), True)
    batch = api.llama_batch_init(count, 0, 1)
    batch.n_tokens = count
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, True
        batch.seq_id[i][0] = 0
    failed = api.llama_decode(context, batch)
    api.llama_batch_free(batch)
    if failed:
        raise RuntimeError(f"llama_decode gives {failed}")
    vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    return np.ctypeslib.as_array(api.llama_get_logits(context), (count, vocabulary)).copy()


def _free(api: Any, model: Any, context: Any) -> None:
    if context is not None:
        api.llama_free(context)
    if model is not None:
        api.llama_model_free(model)


def _bound() -> None:
    """An end to what hangs, and no core file."""
    import resource

    for kind, limit in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, CPU_SECONDS)):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    given = json.loads((folder / JOB).read_text(encoding="utf-8"))
    _bound()
    sys.path.insert(0, given["site"])
    library = importlib.import_module("llama_cpp").llama_cpp
    errors = library.llama_log_callback(lambda level, text, _: None)  # asserts go to stderr all the same
    library.llama_log_set(errors, ctypes.c_void_p(0))
    library.llama_backend_init()
    if library.llama_supports_gpu_offload():
        (folder / GPU).touch()
    try:
        run_all(library, [Run(**run) for run in given["runs"]], given["tokens"], folder)
    except (ResourceError, MemoryError) as error:
        sys.stderr.write(f"\n{str(error) or 'no memory'}\n")
        sys.exit(ResourceError.exit_code)
