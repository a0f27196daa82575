"""llama.cpp as a backend, through its low-level C API: no sampler, no template, nothing between tokens and logits."""

from __future__ import annotations

import ctypes
from collections import deque
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ...converter.core.errors import InputError, ResourceError
from ...converter.model.gguf_parts import gguf_parts
from ...converter.model.tokens import DEFAULT
from ...exporters.gguf.vocabulary import template_name
from ...exporters.llamacpp.runtime import import_llama_cpp, lowrank_version
from .inspection import check_loadable, inspect_gguf
from .protocol import SEQUENCES, Logits, Tokens

BATCH = 512  # tokens per decode call; bounds the logits that llama.cpp holds at once
ERROR_LEVEL = 4
F32_TYPE = 0
NO_FLASH_ATTENTION = 0


class LlamaCppBackend:
    """One GGUF file in llama.cpp, with its LoRA adapter if it has one (layout "adapter"), one sequence at a time.

    Args:
        path: the file, factored or ordinary; of one in parts any.
        n_ctx: longest sequence, in tokens.
        threads: CPU threads for prompt and decoding.
        exact: keep keys and values in float32 and use plain attention, so that parity with torch measures the file
            and not the runtime's shortcuts. False takes llama.cpp's defaults (float16, flash attention): use that to
            measure speed.
        module: another imported `llama_cpp`; by default the project's patched one.

    Raises:
        InputError: the file is missing, not GGUF, damaged, factored for a library without the patch, or refused.
        ResourceError: the runtime has not been built, or there is no memory for the context.
    """

    name = "llama.cpp"

    def __init__(
        self, path: Path, *, n_ctx: int = 1024, threads: int = 1, exact: bool = True, module: ModuleType | None = None
    ) -> None:
        self._model: Any = None
        self._context: Any = None
        self._batch: Any = None
        summary = inspect_gguf(path)
        library = module if module is not None else import_llama_cpp()
        check_loadable(path, summary, patched_version=lowrank_version(library))
        self._api: Any = library.llama_cpp
        self._errors, _ = _quiet(self._api)
        self._errors.clear()
        self._n_ctx, self._length = n_ctx, 0
        self._sequences = SEQUENCES if exact else 1
        try:
            self._load(gguf_parts(path)[0], summary.adapter, threads, exact)  # llama.cpp finds the others itself
        except BaseException:
            self.close()
            raise

    def window_logits(self, tokens: Tokens) -> Logits:
        """Logits (T, vocabulary) of every position, from an empty state."""
        self.reset()
        logits = np.empty((len(tokens), self._vocabulary), dtype=np.float32)
        for start in range(0, len(tokens), BATCH):
            part = tokens[start : start + BATCH]
            self._decode(part[None], every=True)
            rows = self._api.llama_get_logits(self._context)
            logits[start : start + len(part)] = np.ctypeslib.as_array(rows, (len(part), self._vocabulary))
        return logits

    def reset(self) -> None:
        """Forget the sequence (empty KV cache)."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)
        self._length = 0

    def feed(self, tokens: Tokens) -> Logits:
        """Append tokens and return the logits (vocabulary,) after the last one."""
        last: Logits = self.feed_all(tokens[None])[0]
        return last

    def at_once(self, length: int) -> int:
        """Sequences of `length` tokens that fit into the context together."""
        return max(1, min(self._sequences, self._n_ctx // length))

    def feed_all(self, tokens: Tokens) -> Logits:
        """Append tokens (B, T), a row to each of B sequences; logits (B, vocabulary) after the last ones."""
        count, length = tokens.shape
        if length == 0:
            raise InputError("llama.cpp: no tokens to feed")
        for start in range(0, length, BATCH // count):
            part = tokens[:, start : start + BATCH // count]
            self._decode(part, every=False)
        rows = [self._api.llama_get_logits_ith(self._context, part.shape[1] * (i + 1) - 1) for i in range(count)]
        return np.stack([np.ctypeslib.as_array(row, (self._vocabulary,)) for row in rows])

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """llama.cpp's own token ids of a text, without the start or end token.

        Args:
            text: any text.
            special: whether special tokens written out in the text count as such.
        """
        data = text.encode("utf-8")
        room = 3 * len(data) + 8  # a mark for a space may be three bytes, each a token
        ids = (self._api.llama_token * room)()
        count = self._api.llama_tokenize(self._vocab, data, len(data), ids, room, False, special)
        if count < 0:
            raise InputError("llama.cpp: the text cannot be tokenized")
        return list(ids[:count])

    def tokenize_special(self, text: str) -> list[int]:
        """As `tokenize`, of a text in which special tokens are written out."""
        return self.tokenize(text, special=True)

    def special_tokens(self) -> tuple[int | None, frozenset[int]]:
        """The token that begins a text, None where the file names none, and all that end one, as llama.cpp has them."""
        ends = (token for token in range(self._vocabulary) if self._api.llama_vocab_is_eog(self._vocab, token))
        begin = int(self._api.llama_vocab_bos(self._vocab))
        return (begin if begin >= 0 else None), frozenset(ends)

    def chat_template(self, name: str) -> str | None:
        """A chat template as llama.cpp has it, None where it has none of that name."""
        key = None if name == DEFAULT else template_name(name).encode()
        found = self._api.llama_model_chat_template(self._model, key)
        return None if found is None else str(found.decode("utf-8", "replace"))

    def close(self) -> None:
        """Free the model and its context; safe to call twice."""
        if self._batch is not None:
            self._api.llama_batch_free(self._batch)
        if self._context is not None:
            self._api.llama_free(self._context)
        if self._model is not None:
            self._api.llama_model_free(self._model)
        self._batch = self._context = self._model = None

    def _load(self, path: Path, adapter: Path | None, threads: int, exact: bool) -> None:
        self._api.llama_backend_init()
        self._model = self._api.llama_model_load_from_file(str(path).encode(), self._api.llama_model_default_params())
        if not self._model:
            raise InputError(f"{path}: llama.cpp cannot load this file: {self._last_error()}")
        options = self._api.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = self._n_ctx, BATCH, BATCH
        options.n_threads = options.n_threads_batch = threads
        options.n_seq_max, options.kv_unified = self._sequences, True  # one cache for all, as large as for one
        if exact:
            options.type_k = options.type_v = F32_TYPE
            options.flash_attn_type = NO_FLASH_ATTENTION
        self._context = self._api.llama_init_from_model(self._model, options)
        if not self._context:
            raise ResourceError(f"{path}: llama.cpp has no room for {self._n_ctx} tokens: {self._last_error()}")
        if adapter is not None:
            self._apply(adapter)
        self._vocab = self._api.llama_model_get_vocab(self._model)
        self._vocabulary = int(self._api.llama_vocab_n_tokens(self._vocab))
        self._batch = self._api.llama_batch_init(BATCH, 0, 1)
        for i in range(BATCH):
            self._batch.n_seq_id[i] = 1

    def _apply(self, adapter: Path) -> None:
        """Add a LoRA adapter at scale 1. It is freed with the model."""
        loaded = self._api.llama_adapter_lora_init(self._model, str(adapter).encode())
        if not loaded:
            raise InputError(f"{adapter}: llama.cpp cannot load this adapter: {self._last_error()}")
        one = (self._api.llama_adapter_lora_p_ctypes * 1)(loaded)
        if self._api.llama_set_adapters_lora(self._context, one, 1, (ctypes.c_float * 1)(1.0)) != 0:
            raise InputError(f"{adapter}: llama.cpp cannot apply this adapter: {self._last_error()}")

    def _decode(self, tokens: Tokens, *, every: bool) -> None:
        """Append (B, T) tokens, up to BATCH, a row to a sequence; keep the logits of every position or of the last."""
        sequences, length = tokens.shape
        count = tokens.size
        if sequences * (self._length + length) > self._n_ctx:
            found = sequences * (self._length + length)
            raise InputError(f"llama.cpp: {found} tokens, the context holds {self._n_ctx}")
        if count and not 0 <= int(np.min(tokens)) <= int(np.max(tokens)) < self._vocabulary:
            raise InputError(f"llama.cpp: a token id lies outside the vocabulary of {self._vocabulary}")
        self._batch.n_tokens = count
        as_array = np.ctypeslib.as_array
        as_array(self._batch.token, (BATCH,))[:count] = tokens.reshape(-1)
        as_array(self._batch.pos, (BATCH,))[:count] = np.tile(np.arange(self._length, self._length + length), sequences)
        for i in range(count):
            self._batch.seq_id[i][0] = i // length
        wanted = as_array(self._batch.logits, (BATCH,))
        wanted[:count] = every
        wanted[length - 1 : count : length] = True
        if self._api.llama_decode(self._context, self._batch) != 0:
            raise ResourceError(f"llama.cpp: decoding failed: {self._last_error()}")
        self._length += length

    def _last_error(self) -> str:
        """The most telling of the last error lines: the first, later ones repeat that loading failed."""
        line = next((line for line in self._errors if line), "no reason given")
        return line.removeprefix("llama_model_load: error loading model: ")


@cache
def _quiet(api: Any) -> tuple[deque[str], Any]:
    """Route the library's log, which goes to stderr, into its last error lines.

    The log is the whole process's, and the library keeps the callback's pointer for good: hence once per library.
    """
    errors: deque[str] = deque(maxlen=4)

    def keep(level: int, text: bytes, _: ctypes.c_void_p) -> None:
        if level == ERROR_LEVEL:
            errors.append(text.decode("utf-8", "replace").strip())

    callback = api.llama_log_callback(keep)
    api.llama_log_set(callback, ctypes.c_void_p(0))
    return errors, callback
