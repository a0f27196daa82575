"""A llama.cpp without the patch (PyPI's xllamacpp) as a peer: every next-token probability, from another process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

INSTALLED = find_spec("xllamacpp") is not None
REASON = "xllamacpp (a stock llama.cpp) is not installed"

CODE = """
import json, os, sys
import xllamacpp as x

def serve(model, adapter):
    params = x.CommonParams()
    params.model.path = model
    params.n_ctx, params.warmup, params.verbosity = 128, False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = x.ggml_type.GGML_TYPE_F32
    if adapter:
        params.lora_adapters = [x.CommonAdapterLoraInfo(adapter, 1.0)]
    return x.Server(params)

def log_probabilities(server, prompt, vocabulary):
    # Always answers "e": half a letter as an answer would come without probabilities. They are those before the bias.
    asked = {"prompt": prompt, "n_predict": 1, "n_probs": vocabulary, "cache_prompt": False,
             "logit_bias": [["e", 1e4]], "samplers": ["top_k"], "top_k": 1}
    found = server.handle_completions(asked)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    row = [float("nan")] * vocabulary
    for entry in found:
        row[entry["id"]] = entry["logprob"]
    return row

jobs, prompts, vocabulary = json.loads(sys.stdin.read())
for model, adapter in jobs:
    server = serve(model, adapter)
    print(json.dumps([log_probabilities(server, prompt, vocabulary) for prompt in prompts]), flush=True)
os._exit(0)  # stopping a server can wait for itself forever
"""


def log_probabilities(
    files: Sequence[tuple[Path, Path | None]], tokens: np.ndarray, lengths: Sequence[int], vocabulary: int
) -> np.ndarray:
    """Log-probabilities of every token after each prefix, (files, prefixes, vocabulary).

    Args:
        files: (model, LoRA adapter or None) pairs.
        tokens: (T,) token ids.
        lengths: of the prefixes of `tokens`.
        vocabulary: tokens that the model knows.

    Raises:
        RuntimeError: the library refused a file, or ended; with its last lines.
    """
    jobs = [(str(model), str(adapter) if adapter else None) for model, adapter in files]
    asked = json.dumps([jobs, [tokens[:length].tolist() for length in lengths], vocabulary])
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"stock llama.cpp ended with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[[")]
    return np.array(rows, dtype=np.float64)
