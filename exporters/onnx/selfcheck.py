"""After every export: does the folder load, and does it compute what the torch model computes?

The builder can write a model that does not load, or computes something else, without an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...converter.checkpoint import load_tokenizer
from ...converter.errors import InputError
from .contents import model_file
from .session import one_line, open_decoder

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

CHECK_TOKENS = 48
GENERATED_TOKENS = 4
FLOAT_TOLERANCE = 2e-3
"""Largest logit difference of an fp32 export, in units of the reference's standard deviation (5e-6 is usual)."""
INT8_TOLERANCE = 0.25
"""Largest median KLD, in nats, of an int8 export over the check tokens (0.001 to 0.02 is usual)."""

_TIE = 0.02  # logits this close, in standard deviations, may swap places between two runtimes
_RUNTIME_OPERATORS = ("SimplifiedLayerNormalization",)
_TEXT = (
    "The lighthouse keeper climbed the stairs every evening to light the lamp, and every morning he climbed them again "
    "to put it out. In between he read letters, mended nets, and wrote down the weather in a small blue book."
)
_THREADS = 2


def check_tokens(checkpoint: Path, *, vocabulary: int, context: int) -> NDArray[np.int32]:
    """The tokens every export is checked on, (T,): ordinary text.

    Random tokens would not do: on them 8-bit rounding alone moves a factored model by whole nats.

    Args:
        checkpoint: a directory with a tokenizer.
        vocabulary: tokens the model knows.
        context: longest sequence of the model.

    Raises:
        InputError: no usable tokenizer, or one made for another model.
    """
    tokenizer = load_tokenizer(checkpoint)
    try:
        tokens = tokenizer.encode(_TEXT, add_special_tokens=False)[: min(CHECK_TOKENS, context - GENERATED_TOKENS)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{checkpoint}: its tokenizer cannot be loaded: {one_line(error)}") from error
    if len(tokens) < 2:
        raise InputError(f"{checkpoint}: its tokenizer gives {len(tokens)} tokens for a sentence")
    if max(tokens) >= vocabulary:
        raise InputError(f"{checkpoint}: its tokenizer has token {max(tokens)}, the model knows {vocabulary} tokens")
    return np.asarray(tokens, dtype=np.int32)


def reference_logits(model: PreTrainedModel, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """Logits (T, vocabulary) of the torch model."""
    import torch

    with torch.inference_mode():
        logits = model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
    return np.asarray(logits.float().numpy(), dtype=np.float32)


def check_export(folder: Path, tokens: NDArray[np.int32], reference: NDArray[np.float32], *, int8: bool) -> float:
    """Validate the graph, compare logits in ONNX Runtime, generate in ONNX Runtime GenAI.

    Args:
        folder: what the builder wrote.
        tokens: (T,).
        reference: torch's logits (T, vocabulary) for them.
        int8: which tolerance applies.

    Returns:
        The difference found: in standard deviations of the reference for fp32, the median KLD for int8.

    Raises:
        InputError: the folder does not load, or computes something else.
    """
    _check_graph(folder)
    decoder = open_decoder(folder, threads=_THREADS)
    cut = len(tokens) // 2
    first, cache = decoder.run(tokens[:cut], decoder.empty_cache, keep_cache=True)
    second, _ = decoder.run(tokens[cut:], cache, keep_cache=False)
    logits = np.concatenate([first, second])
    difference = float(np.median(kld(reference, logits))) if int8 else _deviation(reference, logits)
    tolerance = INT8_TOLERANCE if int8 else FLOAT_TOLERANCE
    if not difference <= tolerance:
        kind = "median KLD" if int8 else "difference in standard deviations"
        raise InputError(
            f"the ONNX model does not compute what the torch model computes: {kind} {difference:.3g}, at most "
            f"{tolerance:g} is accepted; this model cannot be exported to ONNX"
        )
    _check_generation(folder, tokens, logits[-1])
    return difference


def kld(reference: NDArray[np.float32], logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(softmax(reference) || softmax(logits)) of every position, in nats, (T,); both arguments (T, vocabulary)."""
    p, q = (_log_softmax(values.astype(np.float64)) for values in (reference, logits))
    result: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(-1)
    return result


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = values - values.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _deviation(reference: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
    return float(np.abs(logits - reference).max() / max(float(reference.std()), 1e-12))


def _check_graph(folder: Path) -> None:
    """Run the ONNX checker, hiding from it the one operator of its own that ONNX Runtime keeps in ONNX's domain.

    Raises:
        InputError: the graph is not valid ONNX.
    """
    import onnx

    path = model_file(folder)
    probe = path.with_suffix(".check")  # the checker wants external data beside the file it reads
    graph = onnx.load(str(path), load_external_data=False)
    for node in graph.graph.node:
        if node.op_type in _RUNTIME_OPERATORS:
            node.domain = "com.microsoft"
    try:
        probe.write_bytes(graph.SerializeToString())
        onnx.checker.check_model(str(probe))
    except onnx.checker.ValidationError as error:
        raise InputError(f"{path}: not a valid ONNX model: {one_line(error)}") from error
    finally:
        probe.unlink(missing_ok=True)


def _check_generation(folder: Path, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> None:
    """The first token GenAI generates must be the most likely one in ONNX Runtime, up to a tie."""
    import onnxruntime_genai

    try:
        model = onnxruntime_genai.Model(str(folder))
        parameters = onnxruntime_genai.GeneratorParams(model)
        length = len(tokens) + GENERATED_TOKENS
        parameters.set_search_options(max_length=length, min_length=0, do_sample=False, repetition_penalty=1.0)
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(tokens)
        generated: list[int] = []
        while len(generated) < GENERATED_TOKENS and not generator.is_done():
            generator.generate_next_token()
            generated.append(int(generator.get_next_tokens()[0]))
    except Exception as error:  # a RuntimeError, or what pybind11 makes of a C++ exception
        raise InputError(f"{folder}: ONNX Runtime GenAI cannot run it: {one_line(error)}") from error
    if not generated or logits[generated[0]] < logits.max() - _TIE * logits.std():
        raise InputError(
            f"{folder}: ONNX Runtime GenAI generates {generated}, but ONNX Runtime prefers token {logits.argmax()}; "
            "this model cannot be exported to ONNX"
        )
