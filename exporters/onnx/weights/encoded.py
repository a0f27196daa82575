"""Every matrix of a model in its type: what the graph stores, and in the live model what the runtime reads from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ....converter.checkpoint.lowrank_linear import LowRankLinear
from ....converter.checkpoint.reader import CheckpointReader
from ....converter.core.errors import InputError
from ...chosen import ALPHA, CHOSEN
from ...rounding.balancing import rotate_factors, seed_of
from ...rounding.calibrated import open_calibrated
from ...rounding.gptq_linears import WEIGHT, C, P, U, V, round_linears
from .quantize import BlockFormat, QuantizedMatrix, dequantize, quantize, quantize_gptq
from .types import OnnxOptions, bits_of, block_format, has_codes

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ....converter.core.progress import Progress
    from ...rounding.gptq import Rounded

HALF_RANGE = 65504.0


def encode_model(
    model: nn.Module, quantization: str, options: OnnxOptions, rounded: Mapping[str, QuantizedMatrix]
) -> dict[nn.Module, QuantizedMatrix]:
    """Round every matrix of a model to its type, in place, after `rotate_factors` where factors become codes.

    Args:
        model: float32; its weights are replaced by what the runtime will read.
        quantization: see `types.QUANTIZATIONS`.
        options: of the encoding.
        rounded: tensor name -> matrix that is encoded already.

    Returns:
        Linear or embedding -> its matrix, of those that are stored as codes; tied ones share it.

    Raises:
        UsageError: a choice that says nothing of a matrix.
        InputError: a weight beyond the range of float16.
    """
    from torch import nn

    _rotate_factors(model, quantization, options, rounded)
    found: dict[nn.Module, QuantizedMatrix] = {}
    seen: dict[int, QuantizedMatrix | None] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        name, key = f"{path}.weight", id(module.weight)
        if key not in seen:
            format = block_format(name, quantization, options)
            if format is not None:
                seen[key] = matrix = rounded.get(name) or quantize(module.weight, format)
                module.weight.data = dequantize(matrix)
            else:
                seen[key] = None
                if bits_of(name, quantization) == 16:
                    module.weight.data = _halved(name, module.weight.data)
        shared = seen[key]
        if shared is not None:
            found[module] = shared
    return found


def _rotate_factors(
    model: nn.Module, quantization: str, options: OnnxOptions, rounded: Mapping[str, QuantizedMatrix]
) -> None:
    """Of every linear in two factors that is going to be rounded to codes, and has not been."""
    for path, linear in model.named_modules():
        names = (f"{path}.{U}", f"{path}.{V}")
        if not isinstance(linear, LowRankLinear) or any(name in rounded for name in names):
            continue
        if all(block_format(name, quantization, options) for name in names):
            u, v = linear.lowrank_u.weight, linear.lowrank_v.weight
            u.data, v.data = rotate_factors(u.data, v.data, seed_of(path))


def gptq_matrices(
    reader: CheckpointReader,
    quantization: str,
    options: OnnxOptions,
    merged: Collection[str],
    progress: Progress,
) -> dict[str, QuantizedMatrix]:
    """The linears of a checkpoint's blocks, rounded with GPTQ: tensor name -> matrix.

    Factored linears named by `merged` are multiplied out. Nothing where the rounding is plain or the type has no codes.

    Raises:
        UsageError, InputError: as `open_calibrated` says.
    """
    if options.rounding == "plain" or not has_codes(quantization):
        return {}
    parts = (C, P) if reader.layout == "pivot" else (U, V)

    def types(linear: str) -> dict[str, BlockFormat]:
        stored = parts if linear in reader.ranks and linear not in merged else (WEIGHT,)
        formats = {part: block_format(f"{linear}.{part}", quantization, options) for part in stored}
        return {part: format for part, format in formats.items() if format is not None}

    def round(_name: str, weights: Tensor, moment: Tensor, format: BlockFormat) -> Rounded[QuantizedMatrix]:
        return quantize_gptq(weights, moment, format)

    blocks, chunks = open_calibrated(reader, options.calibration, options.device, progress)
    return dict(round_linears(blocks, chunks, types, round, progress, ALPHA if quantization == CHOSEN else 0.0))


def _halved(name: str, weight: Tensor) -> Tensor:
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    if largest > HALF_RANGE:
        raise InputError(f"{name!r} holds {largest:g}, beyond the range of fp16")
    return weight.half().float()
