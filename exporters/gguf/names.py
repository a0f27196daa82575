"""Tensor names and row order: what a Hugging Face tensor is called in GGUF, per model family."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ...converter.checkpoint.layouts import C_SUFFIX, P_SUFFIX, V_SUFFIX
from ...converter.core.errors import InputError
from ...converter.families.family import Gguf

Number = TypeVar("Number", bound=np.generic)

UNSTORED = re.compile(r"\.rotary_emb\.inv_freq$")  # derived from the configuration
IN_BLOCK = re.compile(r"(\d+)\.([\w.]+?)\.((?:lowrank_[uvpc]\.)?weight|bias|lowrank_perm)")
EXPERT = re.compile(r"(?<=[a-z]\.)\d+(?=\.)")  # its number, inside a block
OUTSIDE_BLOCK = re.compile(r"([\w.]+?)\.((?:lowrank_[uvpc]\.)?weight|bias|lowrank_perm)")


def gguf_name(name: str, of: Gguf) -> str | None:
    """The GGUF name of a Hugging Face tensor; None for one that is not stored.

    `model.layers.3.self_attn.q_proj.lowrank_u.weight` becomes `blk.3.attn_q.lowrank_u.weight`. Those of all experts of
    a block become one: `model.layers.3.mlp.experts.5.up_proj.weight` is in `blk.3.ffn_up_exps.weight`.

    Raises:
        InputError: the family has no such tensor.
    """
    if UNSTORED.search(name):
        return None
    inside = name.removeprefix(of.blocks + ".")
    if inside != name and (match := IN_BLOCK.fullmatch(inside)) and (module := EXPERT.sub("*", match[2])) in of.block:
        return f"blk.{match[1]}.{of.block[module]}.{match[3]}"
    if (match := OUTSIDE_BLOCK.fullmatch(name)) and match[1] in of.outside:
        return f"{of.outside[match[1]]}.{match[2]}"
    raise InputError(f"tensor {name!r} has no place in a GGUF file of architecture {of.architecture!r}")


def is_stack(name: str) -> bool:
    """Whether a GGUF name is of a tensor with a matrix per expert."""
    return "_exps." in name


def gguf_shapes(shapes: Mapping[str, tuple[int, ...]], of: Gguf) -> dict[str, tuple[int, ...]]:
    """GGUF name -> shape of the tensors that a checkpoint's become, those of all experts together.

    Args:
        shapes: Hugging Face name -> shape.
        of: the family.

    Raises:
        InputError: see `gguf_name`.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        new = gguf_name(name, of)
        if new is not None:
            found[new] = (found[new][0] + 1 if new in found else 1, *shape) if is_stack(new) else shape
    return found


def rotary_heads(name: str, of: Gguf, heads: int, key_value_heads: int) -> int | None:
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
    """Reorder the output rows of q or k from "halves" to "neighbors" rotary order.

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
