"""An exported model in plain ONNX Runtime: a session, its inputs and outputs found by name, its KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...converter.core.errors import InputError, ResourceError
from .check.folder_check import check_folder
from .contents import model_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
QUIET = 4
"""ONNX Runtime's log level: fatal only. What it logs as an error it also raises."""


@dataclass(frozen=True)
class Decoder:
    """A session of a decoder with a KV cache.

    Attributes:
        session: the `onnxruntime.InferenceSession`.
        empty_cache: for every cache input a float array (1, key/value heads, 0, head size).
        cache_outputs: the output that continues each cache input, in the order of `empty_cache`.
        takes_positions: whether the graph takes `position_ids`.
    """

    session: Any
    empty_cache: dict[str, NDArray[Any]]
    cache_outputs: tuple[str, ...]
    takes_positions: bool

    def run(
        self, tokens: NDArray[np.int32], cache: dict[str, NDArray[Any]], *, keep_cache: bool
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """Logits of every position after cached sequences, and the cache grown by these tokens.

        Args:
            tokens: (T,) of one sequence or (B, T) of several, T at least 1.
            cache: `empty_cache` or what the previous call returned.
            keep_cache: False skips fetching the new cache; the second result is then empty.

        Returns:
            logits (T, vocabulary) or (B, T, vocabulary), and the cache, whose arrays are (B, heads, past + T, head
            size).

        Raises:
            InputError: a kernel refuses the model's sizes.
        """
        past = next(iter(cache.values())).shape[2]
        ids = np.atleast_2d(np.asarray(tokens, dtype=np.int64))
        count, length = ids.shape
        if past == 0:
            cache = {name: np.zeros((count, *empty.shape[1:]), empty.dtype) for name, empty in cache.items()}
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": ids,
            "attention_mask": np.ones((count, past + length), dtype=np.int64),
            **cache,
        }
        if self.takes_positions:
            feeds["position_ids"] = np.tile(np.arange(past, past + length, dtype=np.int64), (count, 1))
        names = ["logits", *self.cache_outputs] if keep_cache else ["logits"]
        try:
            logits, *grown = self.session.run(names, feeds)
        except Exception as error:  # onnxruntime's errors share no base class
            raise InputError(f"ONNX Runtime cannot run the model: {one_line(error)}") from error
        logits = logits if tokens.ndim == 2 else logits[0]
        return logits, dict(zip(cache, grown, strict=True)) if keep_cache else {}


def open_decoder(folder: Path, *, threads: int, provider: str = "cpu") -> Decoder:
    """Load the model of an exported folder.

    Args:
        folder: an exported folder.
        threads: threads of one operator; operators run one after the other.
        provider: "cpu" or "cuda".

    Raises:
        InputError: no such folder, or the model is missing, damaged, or not a decoder with a KV cache.
        ResourceError: CUDA was asked for and the session did not get it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    wanted = PROVIDERS[provider]
    path = checked_model(folder)
    onnxruntime.set_default_logger_severity(QUIET)
    try:
        providers = list(dict.fromkeys([wanted, PROVIDERS["cpu"]]))
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no base class
        raise InputError(f"{path}: ONNX Runtime cannot load it: {one_line(error)}") from error
    if wanted not in session.get_providers():
        raise ResourceError(
            f"CUDA was asked for, but ONNX Runtime runs on {', '.join(session.get_providers())}: it needs an NVIDIA "
            "GPU, its driver, and the CUDA and cuDNN libraries that the installed onnxruntime-gpu was built for"
        )
    return _decoder(session, path)


def checked_model(folder: Path) -> Path:
    """Path of the graph inside an exported folder, after `check_folder`. Reads no weights.

    Raises:
        InputError: as `check_folder` says.
    """
    path = model_file(folder)
    check_folder(folder)
    return path


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of a foreign error on one line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _decoder(session: Any, path: Path) -> Decoder:
    """Find the cache among inputs and outputs: `past_key_values.3.key` is continued by `present.3.key`."""
    inputs = {value.name: value for value in session.get_inputs()}
    outputs = {value.name for value in session.get_outputs()}
    caches = [name for name in inputs if name.startswith("past_key_values.")]
    continued = tuple(name.replace("past_key_values", "present") for name in caches)
    if not caches or not outputs.issuperset(("logits", *continued)) or "input_ids" not in inputs:
        raise InputError(f"{path}: not a decoder with a KV cache (inputs: {', '.join(list(inputs)[:4])}, ...)")
    head_size = _head_size(path.parent)
    try:
        empty = {
            name: np.zeros((1, int(inputs[name].shape[1]), 0, head_size), dtype=_DTYPES[inputs[name].type])
            for name in caches
        }
    except (KeyError, IndexError, TypeError, ValueError):
        raise InputError(f"{path}: its cache is no array of floats (1, heads, tokens, head size)") from None
    return Decoder(session, empty, continued, "position_ids" in inputs)


_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def _head_size(folder: Path) -> int:
    """The cache's last dimension is symbolic in the graph; genai_config.json knows it.

    Raises:
        InputError: genai_config.json is missing or damaged.
    """
    from ...converter.checkpoint.reader import read_json

    path = folder / "genai_config.json"
    try:
        return int(read_json(path)["model"]["decoder"]["head_size"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: model.decoder.head_size is missing") from None
