"""How large an export will be, from tensor shapes alone: what `plan` prints before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from .quantise import BLOCK, blocks

QUANTISATIONS = ("fp32", "int8")

_FLOAT = 4
_QUANTISED_BLOCK = BLOCK + 4  # codes and one float32 scale
_GRAPH = 2_000  # bytes of model.onnx that do not grow with the model
_GRAPH_PER_TENSOR = 800  # nodes, value types and external-data entries around one tensor
_EMBEDDING = "embed_tokens.weight"
_HEAD = "lm_head.weight"


def predict_bytes(
    shapes: Mapping[str, tuple[int, ...]], quantisation: str, *, tied: bool, rotary_elements: int = 0
) -> int:
    """Bytes of model.onnx and its external data.

    Args:
        shapes: Hugging Face tensor name -> shape; a factored linear X as its factors and permutation.
        quantisation: "fp32" or "int8".
        tied: the embedding is the output head, stored once whether or not `shapes` lists both.
        rotary_elements: entries of the stored cosine and sine tables (see `rotary_elements`).

    Raises:
        ValueError: unknown quantisation.
    """
    if quantisation not in QUANTISATIONS:
        raise ValueError(f"quantisation {quantisation!r} is not one of {', '.join(QUANTISATIONS)}")
    stored = {name: shape for name, shape in shapes.items() if not (tied and name == _HEAD)}
    weights = sum(_tensor_bytes(shape, quantisation) for shape in stored.values())
    return weights + rotary_elements * _FLOAT + _GRAPH + _GRAPH_PER_TENSOR * len(stored)


def rotary_elements(config: Mapping[str, Any]) -> int:
    """Entries of the cosine and sine tables the graph stores: one row of half a head each per position.

    Args:
        config: the parsed config.json.
    """
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(config["max_position_embeddings"] * head)


def _tensor_bytes(shape: tuple[int, ...], quantisation: str) -> int:
    if quantisation == "int8" and len(shape) == 2:
        rows, columns = shape
        return rows * blocks(columns) * _QUANTISED_BLOCK
    return prod(shape) * _FLOAT
