"""What a file must hold: every tensor of every block, in the shape that config.json says."""

from __future__ import annotations

from collections.abc import Mapping

from ...converter.core.errors import InputError
from ...converter.families.family import Gguf
from .metadata import Hyperparameters

FORMS = (("weight",), ("lowrank_u.weight", "lowrank_v.weight"), ("lowrank_p.weight", "lowrank_c.weight"))


def check_shapes(
    shapes: Mapping[str, tuple[int, ...]], of: Gguf, hyper: Hyperparameters, says: str = "config.json"
) -> None:
    """Compare the tensors to be written with the hyperparameters.

    Args:
        shapes: GGUF name -> shape.
        of: the family.
        hyper: from config.json, or from a file's metadata.
        says: where they are from.

    Raises:
        InputError: a tensor is missing or has another shape; names it.
    """
    full = _full_shapes(of, hyper)
    for name, shape in shapes.items():
        module, _, kind = name.removeprefix("blk.").partition(".")
        if module.isdigit():
            module, _, kind = kind.partition(".")
        if module not in full:
            continue
        expected = _expected(kind, full[module])
        if len(shape) != len(expected) or any(n not in (None, found) for n, found in zip(expected, shape, strict=True)):
            said = " x ".join("rank" if n is None else str(n) for n in expected)
            raise InputError(f"tensor {name!r} has shape {shape}, but {says} says {said}")
    modules = [f"blk.{block}.{module}" for block in range(hyper.blocks) for module in of.block.values()]
    for module in (*modules, "output_norm"):
        if not any(all(f"{module}.{part}" in shapes for part in form) for form in FORMS):
            raise InputError(f"there is no weight for {module!r}, of {hyper.blocks} blocks by {says}")
        _check_pivot(module, shapes, full[module.rpartition(".")[2]], says)


def _full_shapes(of: Gguf, hyper: Hyperparameters) -> dict[str, tuple[int, ...]]:
    experts, inner = hyper.keys.get("expert_count"), hyper.keys.get("expert_feed_forward_length", hyper.intermediate)
    assert not isinstance(experts, list) and not isinstance(inner, list)
    lead, within = int(experts or 0), int(inner)
    queries, keys = hyper.heads * hyper.head_dim, hyper.key_value_heads * hyper.head_dim
    return {
        "token_embd": (hyper.vocabulary, hyper.hidden),
        "output": (hyper.vocabulary, hyper.hidden),
        "output_norm": (hyper.hidden,),
        "attn_norm": (hyper.hidden,),
        "ffn_norm": (hyper.hidden,),
        "post_attention_norm": (hyper.hidden,),
        "post_ffw_norm": (hyper.hidden,),
        "attn_q": (queries, hyper.hidden),
        "attn_k": (keys, hyper.hidden),
        "attn_v": (keys, hyper.hidden),
        "attn_qkv": (queries + 2 * keys, hyper.hidden),
        "attn_output": (hyper.hidden, queries),
        "attn_q_norm": (queries if of.wide_norms else hyper.head_dim,),
        "attn_k_norm": (keys if of.wide_norms else hyper.head_dim,),
        "ffn_gate": (hyper.intermediate, hyper.hidden),
        "ffn_up": (hyper.intermediate * (2 if of.fused_gate else 1), hyper.hidden),
        "ffn_down": (hyper.hidden, hyper.intermediate),
        "ffn_gate_inp": (lead, hyper.hidden),
        "ffn_gate_exps": (lead, within, hyper.hidden),
        "ffn_up_exps": (lead, within, hyper.hidden),
        "ffn_down_exps": (lead, hyper.hidden, within),
    }


def _expected(kind: str, full: tuple[int, ...]) -> tuple[int | None, ...]:
    """Shape of a weight, bias or factor of a module; None stands for the rank, or what it leaves of the rows."""
    experts, rows = full[:-2], full[-2:-1] or full
    return {
        "bias": rows,
        "lowrank_perm": rows,
        "lowrank_u.weight": (*experts, *rows, None),
        "lowrank_v.weight": (*experts, None, full[-1]),
        "lowrank_p.weight": (*experts, None, full[-1]),
        "lowrank_c.weight": (*experts, None, None),
    }.get(kind, full)


def _check_pivot(module: str, shapes: Mapping[str, tuple[int, ...]], full: tuple[int, ...], says: str) -> None:
    """P and C together must have the rows of W, and C a column per row of P."""
    p, c = shapes.get(f"{module}.lowrank_p.weight"), shapes.get(f"{module}.lowrank_c.weight")
    if p and c and (p[0] + c[0] != full[0] or c[1] != p[0]):
        raise InputError(f"{module!r} has pivot rows {p} and coefficients {c}, but {says} says {full[0]} rows")
