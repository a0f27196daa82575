"""The tensors of a checkpoint's GGUF file, and what each is made of: names, order, rows, products of factors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...converter.checkpoint.layouts import C_SUFFIX, P_SUFFIX, PERM_SUFFIX, U_SUFFIX, V_SUFFIX
from ...converter.checkpoint.reader import CheckpointReader
from ...converter.core.errors import InputError
from ...converter.families.family import Gguf
from ...converter.families.settings import check_settings
from ...converter.families.table import family_to_load
from ...converter.model.config_check import check_config
from .metadata import Hyperparameters, rope_factors
from .names import EXPERT, gguf_name, interleave_rows, rotary_heads

NORM, ROPE = "norm.weight", "rope_"


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor to write: its GGUF name and shape, and the checkpoint tensors it is made of.

    Several parts are multiplied out. A tensor without parts is derived: rope frequencies, or the order of rows that
    were in order in the checkpoint but are not in llama.cpp's rotary order. Or it is a stack, of one matrix per expert.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    experts: tuple[PlannedTensor, ...] = ()

    @property
    def matrices(self) -> tuple[PlannedTensor, ...]:
        """Those of a stack, or itself."""
        return self.experts or (self,)


def plan_tensors(reader: CheckpointReader, of: Gguf, hyper: Hyperparameters, *, native: bool) -> list[PlannedTensor]:
    """Every tensor of the file in the order llama.cpp's own converter writes them: embedding, blocks, head.

    Raises:
        InputError: a tensor that the family does not have, or no output head.
    """
    sources: list[PlannedTensor] = []
    family, where = family_to_load(reader.config, str(reader.path)), str(reader.path)
    left_out = check_config(reader, family)
    check_settings(reader.config, family, where, "gguf")
    for name in reader.names:
        if name in left_out:
            continue
        if hyper.tied and name == family.head + ".weight":
            continue  # the embedding again; llama.cpp reads it from there
        source = _source(name, reader, of, native=native)
        if source is not None:
            sources.append(source)
    if native and reader.layout == "pivot":
        sources += _rotary_orders(sources, of, hyper)
    names = {source.name.split(".")[0] for source in sources}
    if not hyper.tied and "output" not in names:
        raise InputError(f"{reader.path}: no {family.head}.weight, though config.json says the head is not tied")
    if "token_embd" not in names:
        raise InputError(f"{reader.path}: no {family.embedding}.weight")
    sources += [PlannedTensor(name, factors.shape, ()) for name, factors in rope_factors(hyper).items()]
    return sorted(_stacked(sources), key=_file_order)


def _stacked(sources: list[PlannedTensor]) -> list[PlannedTensor]:
    """One tensor for those of all experts, in the order of the experts.

    Raises:
        InputError: they are not of one shape.
    """
    found: dict[str, list[PlannedTensor]] = {}
    for source in sources:
        found.setdefault(source.name, []).append(source)
    return [_stack(name, members) for name, members in found.items()]


def _stack(name: str, members: list[PlannedTensor]) -> PlannedTensor:
    number = _expert(members[0])
    if number is None:
        return members[0]
    shape = members[0].shape
    for member in members:
        if member.shape != shape:
            found = f"{member.parts[0]} is {member.shape}, not {shape}"
            raise InputError(f"{name!r}: experts of a block have one rank in a GGUF file, and {found}")
    experts = sorted(members, key=lambda member: _expert(member) or 0)
    return PlannedTensor(name, (len(experts), *shape), (), tuple(experts))


def _expert(source: PlannedTensor) -> int | None:
    """Which expert's matrix it is; None for one of none."""
    inside = source.parts[0].partition(".layers.")[2].partition(".")[2] if source.parts else ""
    match = EXPERT.search(inside)
    return None if match is None else int(match[0])


def _source(name: str, reader: CheckpointReader, of: Gguf, *, native: bool) -> PlannedTensor | None:
    """What becomes of one checkpoint tensor; None if it is not stored under its own name."""
    if native or not name.endswith((U_SUFFIX, V_SUFFIX, P_SUFFIX, C_SUFFIX, PERM_SUFFIX)):
        stored = gguf_name(name, of)
        return None if stored is None else PlannedTensor(stored, reader.shape(name), (name,))
    if not name.endswith((V_SUFFIX, P_SUFFIX)):
        return None  # multiplied out where V or P is met
    linear = name.removesuffix(V_SUFFIX).removesuffix(P_SUFFIX)
    stored = gguf_name(linear + ".weight", of)
    left = linear + (U_SUFFIX if name.endswith(V_SUFFIX) else C_SUFFIX)
    (rows, _), (right_rows, columns) = reader.shape(left), reader.shape(name)
    shape = (rows if left.endswith(U_SUFFIX) else right_rows + rows, columns)
    return None if stored is None else PlannedTensor(stored, shape, (left, name))


def _rotary_orders(sources: list[PlannedTensor], of: Gguf, hyper: Hyperparameters) -> list[PlannedTensor]:
    """Orders for linears whose pivot rows are in order, but not in llama.cpp's rotary order."""
    shapes = {source.name: source.shape for source in sources}
    missing = []
    for name, shape in shapes.items():
        perm = name.removesuffix(P_SUFFIX) + PERM_SUFFIX
        if (
            name.endswith(P_SUFFIX)
            and perm not in shapes
            and rotary_heads(perm, of, hyper.heads, hyper.key_value_heads)
        ):
            rows = shape[0] + shapes[name.removesuffix(P_SUFFIX) + C_SUFFIX][0]
            missing.append(PlannedTensor(perm, (rows,), ()))
    return missing


def _file_order(source: PlannedTensor) -> tuple[int, int, str]:
    parts = source.name.split(".")
    if parts[0] == "blk":
        return 1, int(parts[1]), source.name
    return (0 if parts[0] == "token_embd" or source.name.startswith(ROPE) else 2), 0, source.name


def tensor_values(
    source: PlannedTensor, reader: CheckpointReader, of: Gguf, hyper: Hyperparameters
) -> NDArray[np.float32] | NDArray[np.int32]:
    """One matrix's values, factors multiplied out where there are two parts, rows in llama.cpp's order."""
    heads = rotary_heads(source.name, of, hyper.heads, hyper.key_value_heads)
    if source.name.endswith(PERM_SUFFIX):
        order: NDArray[np.int32] = (
            reader.tensor(source.parts[0]).numpy() if source.parts else np.arange(source.shape[0], dtype=np.int32)
        )
        return order if heads is None else interleave_rows(order, heads)
    if not source.parts:
        return rope_factors(hyper)[source.name]
    values = _multiplied_out(source, reader)
    if of.norm_shift and source.name.endswith(NORM):
        values = values + np.float32(of.norm_shift)
    return values if heads is None else interleave_rows(values, heads)


def _multiplied_out(source: PlannedTensor, reader: CheckpointReader) -> NDArray[np.float32]:
    """A tensor as stored, U V, or (P, C P) in the order of W's rows."""
    parts: list[NDArray[np.float32]] = [reader.tensor(part).float().numpy() for part in source.parts]
    if len(parts) == 1:
        return parts[0]
    left, right = parts
    product: NDArray[np.float32] = left @ right
    if not source.parts[1].endswith(P_SUFFIX):
        return product
    rows = np.concatenate([right, product])
    order = reader.permutation(source.parts[1].removesuffix(P_SUFFIX))
    return rows if order is None else rows[order.numpy()]
