"""An exported folder in ONNX Runtime GenAI: its logits, its generation loop, its tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ....converter.core.errors import InputError
from ..session import Decoder, one_line
from .check_windows import GENERATED_TOKENS, Reference
from .genai_tokenizer import check_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

Compare = Callable[["NDArray[np.float32]", "NDArray[np.float32]", str], float]

_TIE = 0.02  # logits this close, in standard deviations, may swap places between two runtimes


def check_genai(folder: Path, reference: Reference, decoder: Decoder, compare: Compare) -> float:
    """Compare GenAI with torch on every window, its greedy continuation with ONNX Runtime's, its tokenizer with ours.

    Args:
        folder: what the exporter wrote.
        reference: torch's results.
        decoder: the same model in plain ONNX Runtime.
        compare: torch's logits, GenAI's, and where -> the difference found; raises where it is too large.

    Returns:
        The largest difference found.

    Raises:
        InputError: GenAI cannot run the folder, or does something else with it.
    """
    try:
        model, tokenizer = _open(folder)
        found = []
        for window, logits in zip(reference.windows, reference.logits, strict=True):
            found.append(compare(logits, _window_logits(model, window), f"ONNX Runtime GenAI, {len(window)} tokens"))
        prompt = reference.windows[0]
        _check_generation(folder, decoder, prompt, _greedy(model, prompt))
        check_tokenizer(tokenizer, reference.tokenized, folder)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a RuntimeError, or what pybind11 makes of a C++ exception
        raise InputError(f"{folder}: ONNX Runtime GenAI cannot run it: {one_line(error)}") from error
    return max(found)


def _open(folder: Path) -> tuple[Any, Any]:
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(folder))
    return model, onnxruntime_genai.Tokenizer(model)


def _generator(model: Any, length: int) -> Any:
    import onnxruntime_genai

    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=length, min_length=0, do_sample=False, repetition_penalty=1.0, num_beams=1)
    return onnxruntime_genai.Generator(model, parameters)


def _window_logits(model: Any, window: NDArray[np.int32]) -> NDArray[np.float32]:
    """Logits (T, vocabulary): half of the window as a prompt, the rest appended to its cache."""
    generator = _generator(model, len(window) + 1)
    parts = []
    for part in (window[: len(window) // 2], window[len(window) // 2 :]):
        generator.append_tokens(part)
        parts.append(np.array(generator.get_output("logits"), dtype=np.float32)[0, -len(part) :])
    return np.concatenate(parts)


def _greedy(model: Any, prompt: NDArray[np.int32]) -> list[int]:
    generator = _generator(model, len(prompt) + GENERATED_TOKENS)
    generator.append_tokens(prompt)
    generated: list[int] = []
    while len(generated) < GENERATED_TOKENS and not generator.is_done():
        generator.generate_next_token()
        generated.append(int(generator.get_next_tokens()[0]))
    return generated


def _check_generation(folder: Path, decoder: Decoder, prompt: NDArray[np.int32], generated: list[int]) -> None:
    """Every token GenAI generates must be the most likely one in ONNX Runtime, up to a tie."""
    logits, cache = decoder.run(prompt, decoder.empty_cache, keep_cache=True)
    for token in generated or [-1]:
        last = logits[-1]
        if token < 0 or last[token] < last.max() - _TIE * last.std():
            raise InputError(
                f"{folder}: ONNX Runtime GenAI generates {generated}, but ONNX Runtime prefers token {last.argmax()}; "
                "this model cannot be exported to ONNX"
            )
        logits, cache = decoder.run(np.asarray([token], dtype=np.int32), cache, keep_cache=True)
