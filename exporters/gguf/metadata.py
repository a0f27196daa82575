"""Hyperparameters: from config.json to GGUF keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...converter.core.errors import InputError
from ...converter.families.family import Value
from ...converter.families.table import FAMILIES, gguf_of

if TYPE_CHECKING:
    from gguf import GGUFWriter

ROPE_TYPES, LONG_ROPE = ("default", "linear", "yarn", "llama3"), ("longrope", "su")
ORIGINAL = "original_max_position_embeddings"
WINDOW_SWITCH = "use_sliding_window"  # off where a family has it and config.json is silent
EXPORTED_AS = "lowrank-export "  # general.quantized_by starts with it; the type or mix asked for follows


@dataclass(frozen=True)
class Hyperparameters:
    """What llama.cpp must know about a decoder-only transformer; field names follow config.json.

    `keys` are those that a family has beside those of all.
    """

    blocks: int
    context: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    head_dim: int
    rotary_dim: int
    vocabulary: int
    norm_epsilon: float
    layer_norm: bool
    rope: Mapping[str, Any]
    tied: bool
    sliding_window: int | None
    keys: Mapping[str, Value]

    @property
    def rope_type(self) -> str:
        """How positions are scaled: "default", "linear", "yarn" or "llama3"."""
        return str(self.rope.get("rope_type") or self.rope.get("type") or "default")


def read_hyperparameters(config: Mapping[str, Any]) -> Hyperparameters:
    """Read config.json of a model of a family that GGUF export knows.

    Raises:
        InputError: a key is missing, or the model does something that the GGUF architecture cannot express.
    """
    of = gguf_of(config)
    try:
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        head_dim = int(config.get("head_dim") or hidden // heads)
        rope = _rope(config, of.rope_base)
        rotated = float(rope.get("partial_rotary_factor") or 1.0)
        found = Hyperparameters(
            blocks=int(config["num_hidden_layers"]),
            context=int(config["max_position_embeddings"]),
            hidden=hidden,
            intermediate=int(config["intermediate_size"]),
            heads=heads,
            key_value_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            rotary_dim=int(head_dim * rotated),
            vocabulary=int(config["vocab_size"]),
            norm_epsilon=float(config[of.layer_norm or "rms_norm_eps"]),
            layer_norm=bool(of.layer_norm),
            rope=rope,
            tied=bool(config.get("tie_word_embeddings", False)),
            sliding_window=_sliding_window(config),
            keys=of.keys(config),
        )
    except KeyError as error:
        raise InputError(f"config.json lacks {error}") from None
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"config.json holds something that is not a number: {error}") from None
    if found.rope_type not in (*ROPE_TYPES, *(LONG_ROPE if of.long_rotary else ())):
        raise InputError(f"GGUF export does not support rope type {found.rope_type!r} for this family")
    if rotated != 1.0 and not of.partial_rotary:
        raise InputError("GGUF export does not support a partial rotary embedding for this family")
    return found


def add_hyperparameters(writer: GGUFWriter, of: Hyperparameters) -> None:
    """Write the hyperparameters under the writer's architecture."""
    from gguf import RopeScalingType

    writer.add_block_count(of.blocks)
    writer.add_context_length(of.context)
    writer.add_embedding_length(of.hidden)
    writer.add_feed_forward_length(of.intermediate)
    writer.add_head_count(of.heads)
    writer.add_head_count_kv(of.key_value_heads)
    writer.add_key_length(of.head_dim)
    writer.add_value_length(of.head_dim)
    writer.add_vocab_size(of.vocabulary)
    (writer.add_layer_norm_eps if of.layer_norm else writer.add_layer_norm_rms_eps)(of.norm_epsilon)
    writer.add_rope_dimension_count(of.rotary_dim)
    writer.add_rope_freq_base(float(of.rope.get("rope_theta", 10000.0)))
    if of.rope_type == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(of.rope["factor"]))
    elif of.rope_type == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(of.rope["factor"]))
        writer.add_rope_scaling_orig_ctx_len(_original_context(of))
    elif of.rope_type in LONG_ROPE:
        original = _original_context(of)
        factor = float(of.rope.get("factor") or of.context / original)
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(
            math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        )
    for name, value in of.keys.items():
        _add(writer, f"{writer.arch}.{name}", value)


def _add(writer: GGUFWriter, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_array(key, value)


def rope_factors(of: Hyperparameters) -> dict[str, NDArray[np.float32]]:
    """Tensors of divisors of frequencies (rotary width / 2,) by name: of "llama3" and "longrope", none for others."""
    if of.rope_type == "llama3":
        return {"rope_freqs.weight": _llama3_factors(of)}
    if of.rope_type not in LONG_ROPE:
        return {}
    found = {}
    for kind in ("long", "short"):
        factors = np.asarray(of.rope.get(f"{kind}_factor"), dtype=np.float32)
        if factors.shape != (of.rotary_dim // 2,):
            raise InputError(f"config.json's {kind}_factor is no list of {of.rotary_dim // 2} numbers")
        found[f"rope_factors_{kind}.weight"] = factors
    return found


def _original_context(of: Hyperparameters) -> int:
    return int(of.rope.get(ORIGINAL) or of.context)


def _llama3_factors(of: Hyperparameters) -> NDArray[np.float32]:
    """Low frequencies (long waves) are divided by `factor`, high ones kept, those between interpolated."""
    base, factor = float(of.rope.get("rope_theta", 10000.0)), float(of.rope.get("factor", 8.0))
    low, high = float(of.rope.get("low_freq_factor", 1.0)), float(of.rope.get("high_freq_factor", 4.0))
    original = float(of.rope.get(ORIGINAL, 8192))
    waves = 2 * math.pi * base ** (np.arange(0, of.head_dim, 2) / of.head_dim)
    smooth = np.clip((original / waves - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _rope(config: Mapping[str, Any], base: float) -> dict[str, Any]:
    """Rope settings, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).

    Where kinds of blocks have their own, those of blocks that attend to everything.
    """
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if any(isinstance(value, Mapping) for value in rope.values()):
        rope = dict(rope.get("full_attention") or {})
    if original := config.get(ORIGINAL) or rope.get(ORIGINAL):
        rope[ORIGINAL] = int(original)
    if config.get("partial_rotary_factor"):
        rope.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    rope.setdefault("rope_theta", config.get("rope_theta") or base)
    return rope


def _sliding_window(config: Mapping[str, Any]) -> int | None:
    """The attention window, if one is in use."""
    family = FAMILIES.get(str(config.get("model_type")))
    if family is not None and WINDOW_SWITCH in family.settings and not config.get(WINDOW_SWITCH):
        return None
    window = config.get("sliding_window")
    return int(window) if window else None
