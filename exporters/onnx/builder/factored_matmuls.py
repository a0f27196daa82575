"""Matmuls of factored linears, written through GenAI's builder: two factors, pivot rows, and what shares an input."""

from __future__ import annotations

from typing import Any

from ....converter.checkpoint.lowrank_linear import LowRankLinear
from ....converter.checkpoint.pivot_linear import PivotLinear
from ..weights.quantize import stack

Factored = LowRankLinear | PivotLinear


def inner_factor(linear: Factored) -> tuple[Any, str]:
    """The factor that multiplies the input, V or P, and its name."""
    if isinstance(linear, PivotLinear):
        return linear.lowrank_p, "lowrank_p"
    return linear.lowrank_v, "lowrank_v"


def remaining_rows(
    builder: Any, linear: PivotLinear, stem: str, inner: str, *, logits: bool = False, seq_dim: Any = "sequence_length"
) -> str:
    """P x -> (P x, C P x) in the order of W's rows; returns the name of the last node, as `make_matmul` does.

    The permutation gathers whole rows, between two transpositions: on the last axis, one number at a time, Gather is
    2 to 4 times as slow as all three on a prompt.
    """
    rest = builder.make_matmul(linear.lowrank_c, f"{stem}/lowrank_c/MatMul", inner, seq_dim=seq_dim)
    shape = builder.make_hidden_state_shape(seq_dim=seq_dim, last_dim=linear.out_features)
    last, dtype = f"{stem}/Concat", builder.io_dtype
    builder.make_concat(last, [inner, f"{rest}/output_0"], dtype, shape, axis=-1)
    if linear.lowrank_perm is not None:
        perm = stem[1:].replace("/", ".") + ".lowrank_perm"
        builder.make_initializer(linear.lowrank_perm, perm)
        turned = [shape[0], shape[2], shape[1]]
        builder.make_transpose(f"{stem}/Transpose_1", f"{last}/output_0", dtype, turned, [0, 2, 1])
        builder.make_gather(f"{stem}/Gather", [f"{stem}/Transpose_1/output_0", perm], dtype, turned, axis=1)
        last = f"{stem}/Transpose_2"
        builder.make_transpose(last, f"{stem}/Gather/output_0", dtype, shape, [0, 2, 1])
    if logits:
        builder.make_node("Identity", inputs=[f"{last}/output_0"], outputs=["logits"], name=f"{stem}/Identity")
    return last


def stacked_first(builder: Any, linears: tuple[Any, ...], basename: str, root_input: str) -> dict[Any, str]:
    """Multiply what meets the common input of several linears in one matmul: V or P of factored ones, W of dense ones.

    Small matmuls cost more to start than to run: one instead of three is faster, and changes no result. What is of
    another type stays apart, and so do dense linears beside factored ones whose factors are of other types.

    Returns:
        For every linear that took part, the value that holds its V x, P x or W x; nothing where all are dense in one
        type, which is the caller's to pack, or fewer than two would take part.
    """
    factored = [linear for linear in linears if isinstance(linear, Factored)]
    if not factored and alike(builder, linears):
        return {}
    matrices = {linear: inner_factor(linear)[0] if linear in factored else linear for linear in linears}
    by_format: dict[Any, list[Any]] = {}
    for linear, matrix in matrices.items():
        by_format.setdefault(_format(builder, matrix), []).append(linear)
    groups = [group for group in by_format.values() if not factored or any(linear in factored for linear in group)]
    joined = {linear: matrices[linear] for linear in max(groups, key=len)}
    if len(joined) < 2:
        return {}
    kind = inner_factor(factored[0])[1] if factored else "dense"
    matmul = builder.make_matmul(stacked(builder, tuple(joined.values())), f"{basename}/{kind}/MatMul", root_input)
    split = f"{basename}/{kind}/Split"
    outputs = [f"{split}_{index}/output_0" for index in range(len(joined))]
    rows = [matrix.out_features for matrix in joined.values()]
    builder.make_split(
        split,
        inputs=[f"{matmul}/output_0", f"/model/constants/INT64/{rows}"],
        outputs=outputs,
        dtypes=[builder.io_dtype] * len(joined),
        shapes=[builder.make_hidden_state_shape(last_dim=count) for count in rows],
    )
    return dict(zip(joined, outputs, strict=True))


def alike(builder: Any, linears: tuple[Any, ...]) -> bool:
    """Whether dense linears are all encoded the same way."""
    return len({_format(builder, linear) for linear in linears}) == 1


def _format(builder: Any, matrix: Any) -> Any:
    """How a matrix is encoded; None for floats, which are all alike."""
    encoded = builder._stored.encoded.get(matrix)
    return None if encoded is None else encoded.format


def stacked(builder: Any, linears: tuple[Any, ...]) -> Any:
    """Linears of one input, one above the other: a `QuantizedMatrix`, or what has a `weight`."""
    from types import SimpleNamespace

    import torch

    matrices = [builder._stored.encoded[linear] for linear in linears if linear in builder._stored.encoded]
    if len(matrices) == len(linears):
        return stack(matrices)
    return SimpleNamespace(weight=torch.cat([linear.weight for linear in linears]))
