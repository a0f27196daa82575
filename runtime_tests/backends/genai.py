"""ONNX Runtime GenAI: the runtime that ships on devices, with its own KV cache and generation loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...converter.checkpoint.reader import read_json
from ...converter.core.errors import InputError, ResourceError
from ...exporters.onnx.session import QUIET, checked_model, one_line
from .protocol import Logits, Tokens

PROVIDERS = ("cpu", "cuda")
_MAX_LENGTH = 2048  # GenAI allocates its cache for the longest sequence at once


class GenAiBackend:
    """One exported model in an `onnxruntime_genai.Generator`; implements `Backend`.

    Args:
        folder: what the ONNX export wrote.
        threads: threads of one operator.
        provider: "cpu" or "cuda".
        max_length: longest sequence, prompt included; shortened to the model's context. The KV cache is allocated for
            it when the first tokens are fed.

    Raises:
        InputError: the model is missing or damaged.
        ResourceError: CUDA was asked for and GenAI did not get it.
    """

    name = "onnxruntime-genai"

    def __init__(self, folder: Path, *, threads: int, provider: str = "cpu", max_length: int = _MAX_LENGTH) -> None:
        path = Path(folder)
        checked_model(path)
        context = read_json(path / "genai_config.json")["model"].get("context_length", max_length)  # checked above
        self._max_length = min(max_length, int(context))
        self._model: Any = _open_model(path, threads=threads, provider=provider)
        self._generator: Any = None

    def window_logits(self, tokens: Tokens) -> Logits:
        """Logits (T, vocabulary) of a window from an empty state; the fed sequence is not touched."""
        generator = self._new_generator(len(tokens) + 1)
        generator.append_tokens(_int32(tokens))
        logits: Logits = np.asarray(generator.get_output("logits"), dtype=np.float32)[0]
        return logits

    def reset(self) -> None:
        """Forget the sequence; the cache's memory is kept."""
        if self._generator is not None:
            self._generator.rewind_to(0)

    def feed(self, tokens: Tokens) -> Logits:
        """Append tokens to the cached sequence; logits (vocabulary,) after the last one."""
        if self._generator is None:
            self._generator = self._new_generator()
        self._generator.append_tokens(_int32(tokens))
        logits: Logits = self._generator.get_logits()[0, -1]  # of the last position only: one row leaves the runtime
        return logits

    def generate(self, prompt: Tokens, count: int) -> list[int]:
        """Greedy continuation of `prompt` by GenAI's own loop, from an empty state: at most `count` tokens.

        Stops early where the model ends the text. Logits never leave the runtime: this is the loop to time.
        """
        generator = self._new_generator(len(prompt) + count)
        generator.append_tokens(_int32(prompt))
        generated: list[int] = []
        while len(generated) < count and not generator.is_done():
            generator.generate_next_token()
            generated.append(int(generator.get_next_tokens()[0]))
        return generated

    def tokenize(self, text: str) -> list[int]:
        """GenAI's own token ids of a text, with the token it puts before every text, if any."""
        import onnxruntime_genai

        return [int(token) for token in onnxruntime_genai.Tokenizer(self._model).encode(text)]

    def tokenize_special(self, text: str) -> list[int]:
        """As `tokenize`: GenAI takes special tokens that are written out for such."""
        return self.tokenize(text)

    def special_tokens(self) -> tuple[int | None, frozenset[int]]:
        """The token that begins a text, and all that end one, as GenAI has them."""
        import onnxruntime_genai

        tokenizer = onnxruntime_genai.Tokenizer(self._model)
        return int(tokenizer.bos_token_id), frozenset(int(token) for token in tokenizer.eos_token_ids)

    def close(self) -> None:
        """Free cache and model."""
        self._generator = None
        self._model = None

    def _new_generator(self, max_length: int | None = None) -> Any:
        import onnxruntime_genai

        if self._model is None:
            raise RuntimeError("the backend is closed")
        length = min(max_length or self._max_length, self._max_length)
        parameters = onnxruntime_genai.GeneratorParams(self._model)
        parameters.set_search_options(
            max_length=length, min_length=0, do_sample=False, repetition_penalty=1.0, num_beams=1
        )
        return onnxruntime_genai.Generator(self._model, parameters)


def _open_model(folder: Path, *, threads: int, provider: str) -> Any:
    import onnxruntime_genai

    if provider not in PROVIDERS:
        raise ValueError(f"provider {provider!r} is not one of {', '.join(PROVIDERS)}")
    options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1, "log_severity_level": QUIET}
    try:
        config = onnxruntime_genai.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        config.clear_providers()
        if provider != "cpu":
            config.append_provider(provider)
        model = onnxruntime_genai.Model(config)
    except Exception as error:  # pybind11 makes a RuntimeError of every C++ exception
        message = one_line(error)
        if provider != "cpu" and provider in message.lower():
            raise ResourceError(f"CUDA was asked for, but ONNX Runtime GenAI cannot use it: {message}") from error
        raise InputError(f"{folder}: ONNX Runtime GenAI cannot load it: {message}") from error
    if provider != "cpu" and str(model.device_type).lower() != provider:
        raise ResourceError(f"CUDA was asked for, but ONNX Runtime GenAI runs on {model.device_type}")
    return model


def _int32(tokens: Tokens) -> Tokens:
    return np.ascontiguousarray(tokens, dtype=np.int32)
