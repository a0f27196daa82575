"""Tensor names and row order: what a Hugging Face tensor is called in GGUF, per model family."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ...converter.checkpoint.layouts import C_SUFFIX, P_SUFFIX, V_SUFFIX
from ...converter.errors import InputError

Number = TypeVar("Number", bound=np.generic)

ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
QUERY_KEY_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
FEED_FORWARD = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
BLOCK_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
BLOCK = {**ATTENTION, **FEED_FORWARD, **BLOCK_NORMS}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
UNSTORED = re.compile(r"\.rotary_emb\.inv_freq$")  # derived from the configuration
IN_BLOCK = re.compile(r"model\.layers\.(\d+)\.(\w+(?:\.\w+)?)\.((?:lowrank_[uvpc]\.)?weight|bias|lowrank_perm)")
OUTSIDE_BLOCK = re.compile(r"([\w.]+?)\.((?:lowrank_[uvpc]\.)?weight|bias|lowrank_perm)")


@dataclass(frozen=True)
class Family:
    """How one Hugging Face model type maps to a llama.cpp architecture.

    Attributes:
        architecture: `general.architecture` in the file.
        modules: module path inside a block -> GGUF name inside a block.
        interleaved: llama.cpp rotates neighbouring rows (2i, 2i + 1) of q and k instead of the halves of a head, so
            their rows are stored in another order.
    """

    architecture: str
    modules: dict[str, str]
    interleaved: bool


# The families whose factored files are verified, logit by logit, against torch. Others may go past `build_lora_mm`.
FAMILIES = {
    "llama": Family("llama", BLOCK, interleaved=True),
    "mistral": Family("llama", BLOCK, interleaved=True),
    "qwen2": Family("qwen2", BLOCK, interleaved=False),
    "qwen3": Family("qwen3", {**BLOCK, **QUERY_KEY_NORMS}, interleaved=False),
}


def family(model_type: str) -> Family:
    """The family of a `model_type` in config.json.

    Raises:
        InputError: not one of the verified families.
    """
    if model_type not in FAMILIES:
        raise InputError(f"GGUF export supports {', '.join(FAMILIES)}; this checkpoint is {model_type!r}")
    return FAMILIES[model_type]


def gguf_name(name: str, of: Family) -> str | None:
    """The GGUF name of a Hugging Face tensor; None for one that is not stored.

    `model.layers.3.self_attn.q_proj.lowrank_u.weight` becomes `blk.3.attn_q.lowrank_u.weight`.

    Raises:
        InputError: the family has no such tensor.
    """
    if UNSTORED.search(name):
        return None
    if (match := IN_BLOCK.fullmatch(name)) and match[2] in of.modules:
        return f"blk.{match[1]}.{of.modules[match[2]]}.{match[3]}"
    if (match := OUTSIDE_BLOCK.fullmatch(name)) and match[1] in OUTSIDE:
        return f"{OUTSIDE[match[1]]}.{match[2]}"
    raise InputError(f"tensor {name!r} has no place in a GGUF file of architecture {of.architecture!r}")


def rotary_heads(name: str, of: Family, heads: int, key_value_heads: int) -> int | None:
    """Number of heads whose rows `interleave_rows` must reorder, None for a tensor that keeps its order.

    Args:
        name: GGUF name. Rows of W are rows of U and entries of the bias and of the permutation; V has none of them,
            and the rows of P and C are put into order by the permutation.
        of: the family.
        heads: query heads.
        key_value_heads: key and value heads.
    """
    if not of.interleaved or name.endswith((V_SUFFIX, P_SUFFIX, C_SUFFIX)):
        return None
    if ".attn_q." in name:
        return heads
    return key_value_heads if ".attn_k." in name else None


def interleave_rows(rows: NDArray[Number], heads: int) -> NDArray[Number]:
    """Reorder the output rows of q or k from "halves" to "neighbours" rotary order.

    Inside each head of d rows, row i and row i + d/2, which are rotated together, become rows 2i and 2i + 1.

    Args:
        rows: W or U (heads * d, n), or a bias or permutation (heads * d,).
        heads: number of heads; heads * d rows with even d.

    Raises:
        InputError: the rows do not split into `heads` heads of even size.
    """
    if rows.shape[0] % (2 * heads):
        raise InputError(f"{rows.shape[0]} rows do not split into {heads} heads of even size")
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))
