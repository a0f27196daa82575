"""What a file must hold: every tensor of every block, in the shape that config.json says."""

from __future__ import annotations

from collections.abc import Mapping

from ...converter.errors import InputError
from .metadata import Hyperparameters
from .names import OUTSIDE, Family

FACTORS = ("lowrank_u.weight", "lowrank_v.weight")


def check_shapes(shapes: Mapping[str, tuple[int, ...]], of: Family, hyper: Hyperparameters) -> None:
    """Compare the tensors to be written with the hyperparameters.

    Args:
        shapes: GGUF name -> shape.
        of: the family.
        hyper: from config.json.

    Raises:
        InputError: a tensor is missing or has another shape; names it.
    """
    full = _full_shapes(hyper)
    for name, shape in shapes.items():
        module, _, kind = name.removeprefix("blk.").partition(".")
        if module.isdigit():
            module, _, kind = kind.partition(".")
        if module not in full:
            continue
        expected = _expected(kind, full[module])
        if len(shape) != len(expected) or any(n not in (None, found) for n, found in zip(expected, shape, strict=True)):
            said = " x ".join("rank" if n is None else str(n) for n in expected)
            raise InputError(f"tensor {name!r} has shape {shape}, but config.json says {said}")
    modules = [f"blk.{block}.{module}" for block in range(hyper.blocks) for module in of.modules.values()]
    for module in (*modules, OUTSIDE["model.norm"]):
        if f"{module}.weight" not in shapes and any(f"{module}.{factor}" not in shapes for factor in FACTORS):
            raise InputError(f"the checkpoint has no weight for {module!r}")


def _full_shapes(hyper: Hyperparameters) -> dict[str, tuple[int, ...]]:
    queries, keys = hyper.heads * hyper.head_dim, hyper.key_value_heads * hyper.head_dim
    return {
        "token_embd": (hyper.vocabulary, hyper.hidden),
        "output": (hyper.vocabulary, hyper.hidden),
        "output_norm": (hyper.hidden,),
        "attn_norm": (hyper.hidden,),
        "ffn_norm": (hyper.hidden,),
        "attn_q": (queries, hyper.hidden),
        "attn_k": (keys, hyper.hidden),
        "attn_v": (keys, hyper.hidden),
        "attn_output": (hyper.hidden, queries),
        "attn_q_norm": (hyper.head_dim,),
        "attn_k_norm": (hyper.head_dim,),
        "ffn_gate": (hyper.intermediate, hyper.hidden),
        "ffn_up": (hyper.intermediate, hyper.hidden),
        "ffn_down": (hyper.hidden, hyper.intermediate),
    }


def _expected(kind: str, full: tuple[int, ...]) -> tuple[int | None, ...]:
    """Shape of a weight, bias or factor of a module; None stands for the rank."""
    if kind == "bias":
        return full[:1]
    if kind == "lowrank_u.weight":
        return full[0], None
    return (None, full[-1]) if kind == "lowrank_v.weight" else full
