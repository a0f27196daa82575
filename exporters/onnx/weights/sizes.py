"""How large an export will be, from tensor shapes alone: what `plan` prints before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from .types import HEAD, QUANTIZATIONS, OnnxOptions, bits_of, block_format

_FLOAT = 4
_GRAPH = 2_000  # bytes of model.onnx that do not grow with the model
_GRAPH_PER_TENSOR = 800  # nodes, value types and external-data entries around one tensor


def predict_bytes(
    shapes: Mapping[str, tuple[int, ...]],
    quantization: str,
    *,
    tied: bool,
    rotary_elements: int = 0,
    options: OnnxOptions | None = None,
) -> int:
    """Bytes of model.onnx and its external data.

    Args:
        shapes: Hugging Face tensor name -> shape; a factored linear X as its factors and permutation.
        quantization: see `types.QUANTIZATIONS`.
        tied: the embedding is the output head, stored once whether or not `shapes` lists both.
        rotary_elements: entries of the stored cosine and sine tables (see `rotary_elements`).
        options: of the encoding.

    Raises:
        ValueError: unknown quantization.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization {quantization!r} is not one of {', '.join(QUANTIZATIONS)}")
    stored = {name: shape for name, shape in shapes.items() if not (tied and name.endswith(HEAD))}
    weights = sum(tensor_bytes(name, shape, quantization, options) for name, shape in stored.items())
    return weights + rotary_elements * _FLOAT + _GRAPH + _GRAPH_PER_TENSOR * len(stored)


def rotary_elements(config: Mapping[str, Any]) -> int:
    """Entries of the cosine and sine tables the graph stores: one row of half a head each per position.

    Gemma 3 has such tables for each kind of block.

    Args:
        config: the parsed config.json.
    """
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    kinds = [value for value in (config.get("rope_parameters") or {}).values() if isinstance(value, dict)]
    return int(config["max_position_embeddings"] * head * max(len(kinds), 1))


def tensor_bytes(name: str, shape: tuple[int, ...], quantization: str, options: OnnxOptions | None = None) -> int:
    """Bytes of one tensor as it is stored, by its name in the checkpoint."""
    if len(shape) != 2:
        return prod(shape) * _FLOAT
    format = block_format(name, quantization, options or OnnxOptions())
    if format is None:
        return prod(shape) * bits_of(name, quantization) // 8
    rows, columns = shape
    return rows * format.row_bytes(columns)
