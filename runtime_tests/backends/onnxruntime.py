"""Plain ONNX Runtime: the exported graph without GenAI's generation loop."""

from __future__ import annotations

from pathlib import Path

from ...exporters.onnx.session import Decoder, open_decoder
from .protocol import SEQUENCES, Logits, Tokens


class OnnxRuntimeBackend:
    """One exported model in an `onnxruntime.InferenceSession`; implements `Backend`.

    Args:
        folder: what the ONNX export wrote.
        threads: threads of one operator.
        provider: "cpu" or "cuda".

    Raises:
        InputError: the model is missing or damaged.
        ResourceError: CUDA was asked for and the session did not get it.
    """

    name = "onnxruntime"

    def __init__(self, folder: Path, *, threads: int, provider: str = "cpu") -> None:
        self._open: Decoder | None = open_decoder(folder, threads=threads, provider=provider)
        self._cache = self._open.empty_cache

    def window_logits(self, tokens: Tokens) -> Logits:
        """Logits (T, vocabulary) of a window from an empty state; the fed sequence is not touched."""
        logits, _ = self._decoder.run(tokens, self._decoder.empty_cache, keep_cache=False)
        return logits

    def reset(self) -> None:
        """Empty the KV cache."""
        self._cache = self._decoder.empty_cache

    def feed(self, tokens: Tokens) -> Logits:
        """Append tokens to the cached sequence; logits (vocabulary,) after the last one."""
        last: Logits = self.feed_all(tokens[None])[0]
        return last

    def at_once(self, length: int) -> int:
        """Sequences that run together, whatever their length: their cache grows as they do."""
        return SEQUENCES

    def feed_all(self, tokens: Tokens) -> Logits:
        """Append tokens (B, T), a row to each of B sequences; logits (B, vocabulary) after the last ones."""
        logits, self._cache = self._decoder.run(tokens, self._cache, keep_cache=True)
        last: Logits = logits[:, -1]
        return last

    def close(self) -> None:
        """Free session and cache."""
        self._open = None
        self._cache = {}

    @property
    def _decoder(self) -> Decoder:
        if self._open is None:
            raise RuntimeError("the backend is closed")
        return self._open
