"""Rank plan -> bytes of every export, before any work is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from ..converter.allocation.plan import RankPlan
from ..converter.allocation.rank_multiple import DEFAULT_MULTIPLE
from ..converter.checkpoint.layouts import PERM_SUFFIX
from ..converter.checkpoint.reader import CheckpointReader
from ..converter.core.recipe import Recipe
from ..converter.families.table import family_of, gguf_of
from ..converter.model.source import Source
from ..converter.planning.ranks import rank_multiple_for
from .export import QUANTISATIONS, knows_family
from .onnx.weights.types import OnnxOptions


def with_rank_multiple(
    recipe: Recipe, source: Source, exports: Sequence[tuple[str, str]], onnx: OnnxOptions | None = None
) -> Recipe:
    """The recipe with a rank multiple that suits the types it will be exported in, where it leaves the choice.

    Args:
        recipe: as asked.
        source: its model.
        exports: (format, type) pairs.
        onnx: how ONNX exports are encoded.
    """
    from .gguf.mixes import row_multiple as gguf_multiple
    from .onnx.weights.types import row_multiple as onnx_multiple

    options = onnx or OnnxOptions()
    rows = [gguf_multiple(type) if format == "gguf" else onnx_multiple(type, options) for format, type in exports]
    multiple = rank_multiple_for(recipe, source, max(rows, default=1))
    return recipe if multiple == DEFAULT_MULTIPLE else recipe.model_copy(update={"rank_multiple": multiple})


def predict_exports(reader: CheckpointReader, plan: RankPlan) -> dict[str, dict[str, int]]:
    """Predicted bytes per export, factored and dense.

    Args:
        reader: the dense checkpoint.
        plan: ranks of its linears.

    Returns:
        "gguf q8_0" and so on -> {"factored": bytes, "dense": bytes}, for the formats that know the family.
    """
    dense = {name: reader.shape(name) for name in _stored_names(reader)}
    in_order = _without_permutation(reader)
    factored = {name: shape for name, shape in plan.shapes(dense).items() if not name.endswith(in_order)}
    return {
        f"{format} {quantisation}": {
            "factored": _predict(factored, reader.config, format, quantisation),
            "dense": _predict(dense, reader.config, format, quantisation),
        }
        for format, quantisations in QUANTISATIONS.items()
        if knows_family(format, reader.config)
        for quantisation in quantisations
    }


def predict_storage(reader: CheckpointReader, plan: RankPlan) -> dict[str, dict[str, Any]]:
    """How the factored model's exports are stored, per type of the formats that know the family.

    Returns:
        "gguf q4_k_m", "onnx int4" and so on -> {"bits_per_weight": of all matrices, padding included,
        "fallback_share": of the weights that are stored in another type than they should be, because its blocks do not
        fit their rows, "fallbacks": lines}. ONNX pads rows to whole blocks and falls back to nothing.
    """
    from .gguf.mixes import Quantisation, fallback_lines, records
    from .onnx.weights.multiplied_out import stored_shapes
    from .onnx.weights.sizes import tensor_bytes

    named = plan.shapes({name: reader.shape(name) for name in _stored_names(reader)})
    known = {format: names if knows_family(format, reader.config) else () for format, names in QUANTISATIONS.items()}
    shapes = _stored(named, reader.config) if known["gguf"] else {}
    result: dict[str, dict[str, Any]] = {}
    for quantisation in known["gguf"]:
        tensors = [tensor for tensor in records(shapes, Quantisation(quantisation)) if len(tensor.shape) > 1]
        weights = sum(prod(tensor.shape) for tensor in tensors)
        replaced = sum(prod(tensor.shape) for tensor in tensors if tensor.wanted is not None)
        result[f"gguf {quantisation}"] = {
            "bits_per_weight": 8 * sum(tensor.bytes for tensor in tensors) / weights,
            "fallback_share": replaced / weights,
            "fallbacks": fallback_lines(tensors),
        }
    for quantisation in known["onnx"]:
        matrices = {
            name: shape for name, shape in stored_shapes(named, quantisation, OnnxOptions()).items() if len(shape) > 1
        }
        weights = sum(prod(shape) for shape in matrices.values())
        stored = sum(tensor_bytes(name, shape, quantisation) for name, shape in matrices.items())
        bits = 8 * stored / weights
        result[f"onnx {quantisation}"] = {"bits_per_weight": bits, "fallback_share": 0.0, "fallbacks": []}
    return result


def _stored_names(reader: CheckpointReader) -> list[str]:
    """Names of the tensors that exports store: a tied embedding once."""
    tied = reader.config.get("tie_word_embeddings")
    return sorted(name for name in reader.names if not (tied and name == "lm_head.weight"))


def _without_permutation(reader: CheckpointReader) -> tuple[str, ...]:
    """Endings of the permutations that the pivot layout does without: linears that share an order with each other."""
    shared_orders = family_of(reader.config, str(reader.path)).shared_orders
    return tuple(f".{name}{PERM_SUFFIX}" for shared in shared_orders for name in shared.producers)


def _predict(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], format: str, quantisation: str) -> int:
    if format == "gguf":
        from .gguf.mixes import Quantisation
        from .gguf.mixes import predict_bytes as predict_gguf

        return predict_gguf(_stored(shapes, config), Quantisation(quantisation))
    from .onnx.weights.multiplied_out import stored_shapes
    from .onnx.weights.sizes import predict_bytes as predict_onnx
    from .onnx.weights.sizes import rotary_elements

    tied = bool(config.get("tie_word_embeddings"))
    stored = stored_shapes(shapes, quantisation, OnnxOptions())
    return predict_onnx(stored, quantisation, tied=tied, rotary_elements=rotary_elements(config))


def _stored(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors under the names they have in a GGUF file."""
    from .gguf.names import gguf_name

    of = gguf_of(config)
    return {stored: shape for name, shape in shapes.items() if (stored := gguf_name(name, of)) is not None}
