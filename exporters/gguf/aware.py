"""Rounding that sees the model: linear by linear in forward order, on the inputs that the rounded model makes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ...converter.blocks import BlockSource
from ...converter.input_moments import input_moments
from ...converter.lowrank_linear import LowRankLinear
from ...converter.pivot_linear import PivotLinear
from ...converter.progress import Progress
from .encoding import check_range
from .gauge import mixed, resolved
from .names import Family, gguf_name
from .rounding import PLAIN, Rounded, round_rows

LABEL = "rounding, aware of what follows"


def round_linears(
    blocks: BlockSource,
    chunks: Sequence[Tensor],
    types: Mapping[str, str],
    of: Family,
    library: Path,
    folder: Path,
    progress: Progress,
) -> dict[str, Path]:
    """Round the linears of a model's blocks, each on the inputs that the rounded linears before it make.

    Args:
        blocks: the model, dense or factored.
        chunks: calibration windows, (B, T) each.
        types: GGUF name -> storage type of every tensor of the file. A factored linear whose `.weight` is among them
            is multiplied out.
        of: the model's family.
        library: a ggml library.
        folder: filled with one `.npy` per tensor; a model's worth of them need not fit into memory.
        progress: told about blocks.

    Returns:
        GGUF name -> file of encoded rows, uint8 (m, bytes per row), in the checkpoint's order of rows. Linears none of
        whose types has blocks are not among them.

    Raises:
        InputError: a weight does not fit its type.
    """
    files: dict[str, Path] = {}
    for stop in input_moments(blocks, chunks, progress, LABEL):
        for path in stop.group.linears:
            name = blocks.family.linear_name(stop.block, path)
            stored = {part: gguf_name(f"{name}.{part}", of) or "" for part in PARTS}
            wanted = {part: types[found] for part, found in stored.items() if found in types}
            if all(type in PLAIN for type in wanted.values()):
                continue
            linear, encoded = round_linear(name, stop.tapped.linear(path), stop.moment, wanted, library)
            stop.tapped.install(path, linear)
            for part, rows in encoded.items():
                files[stored[part]] = folder / f"{stored[part]}.npy"
                np.save(files[stored[part]], rows)
    return files


U, V, P, C, WEIGHT = "lowrank_u.weight", "lowrank_v.weight", "lowrank_p.weight", "lowrank_c.weight", "weight"
PARTS = (U, V, P, C, WEIGHT)


def round_linear(
    name: str, linear: nn.Module, moment: Tensor, types: Mapping[str, str], library: Path
) -> tuple[nn.Module, dict[str, NDArray[np.uint8]]]:
    """Round one linear.

    Args:
        name: for errors, and as the seed of what is random.
        linear: dense or factored.
        moment: Sigma (n, n) of its inputs.
        types: part ("weight", "lowrank_u.weight", ...) -> storage type.
        library: a ggml library.

    Returns:
        A module that computes what the runtime will, and part -> encoded rows.

    Raises:
        InputError: a weight does not fit its type.
    """
    if WEIGHT in types:
        assert isinstance(linear, nn.Linear | LowRankLinear | PivotLinear)
        weight = linear.weight if isinstance(linear, nn.Linear) else linear.dense_weight()
        rounded = _rounded(f"{name}.{WEIGHT}", weight.data, moment, types[WEIGHT], library)
        return _dense(rounded.values, linear.bias), {WEIGHT: rounded.encoded}
    parts = (U, V) if isinstance(linear, LowRankLinear) else (C, P)
    left, right = (linear.get_submodule(part.removesuffix(".weight")) for part in parts)
    assert isinstance(left, nn.Linear) and isinstance(right, nn.Linear)
    second, first = _rounded_factors(name, (left.weight.data, right.weight.data), moment, types, parts, library)
    left.weight, right.weight = _parameter(second.values), _parameter(first.values)
    return linear, {parts[0]: second.encoded, parts[1]: first.encoded}


def _rounded_factors(
    name: str,
    factors: tuple[Tensor, Tensor],
    moment: Tensor,
    types: Mapping[str, str],
    parts: tuple[str, str],
    library: Path,
) -> tuple[Rounded, Rounded]:
    """U and V, or C and P: the one that meets the input first, then the other in closed form for it, then that one.

    Rows of P are outputs themselves: pivot rows have no gauge.
    """
    left, right = factors
    if parts == (U, V) and right.shape[0] <= min(left.shape[0], right.shape[1]):
        left, right = mixed(left, right, moment, _seed(name))
    first = _rounded(f"{name}.{parts[1]}", right, moment, types[parts[1]], library)
    fitted, latent = resolved(left, right, first.values, moment)
    return _rounded(f"{name}.{parts[0]}", fitted, latent, types[parts[0]], library), first


def _rounded(name: str, weights: Tensor, moment: Tensor, type: str, library: Path) -> Rounded:
    weights = weights.float()
    check_range(name, weights.numpy(), type)
    return round_rows(weights, moment, type, library)


def _dense(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = _parameter(weight)
    linear.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
    return linear


def _parameter(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def _seed(name: str) -> int:
    """The same for the same linear, whatever else is rounded."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
