"""Every tensor of a checkpoint is read into the model, or known to be derived, or refused; none is passed over."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..checkpoint.layouts import C_SUFFIX, P_SUFFIX, PERM_SUFFIX, U_SUFFIX, V_SUFFIX
from ..checkpoint.reader import CheckpointReader
from ..core.errors import InputError
from ..families.family import Family
from ..storage.documents import shown

READ = ("F64", "F32", "F16", "BF16")
"""Types of stored numbers that mean what they say; integers and 8-bit floats need the scales that lie beside them."""

DERIVED = re.compile(r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|masked_bias|attention\.bias|attn\.bias)$")
"""What older versions stored though it follows from config.json: rotary frequencies, causal masks."""

ADAPTERS = (".lora_A.", ".lora_B.", ".lora_embedding_", ".base_layer.")
SCORES = re.compile(r"(^|\.)(score|classifier|qa_outputs|v_head|value_head|reward_head)\.")
NAMED = 3  # tensors that a refusal names


def check_tensors(reader: CheckpointReader, family: Family) -> frozenset[str]:
    """Account for every tensor of a checkpoint, dense or factored, by name and type; nothing large is read.

    Args:
        reader: of the checkpoint.
        family: its table, with the linears of its blocks.

    Returns:
        Names of the tensors that are left out, because they are derived or change nothing.

    Raises:
        InputError: a tensor that the model has no place for, or none for one of its places, or a stored type that is
            not numbers as they are.
    """
    left_out = {name for name in reader.names if DERIVED.search(name)}
    rest = [name for name in reader.names if name not in left_out]
    check_types(reader, rest)
    required, allowed = _places(reader, family)
    strange = [name for name in rest if name not in allowed]
    idle = {name for name in strange if _changes_nothing(reader, name)}
    _refuse_strange(reader, [name for name in strange if name not in idle])
    for name in required:
        if name not in reader.names:
            raise InputError(f"{reader.path}: tensor {name!r} is missing")
    return frozenset(left_out | idle)


def check_types(reader: CheckpointReader, names: Iterable[str]) -> None:
    """Refuse packed and scaled numbers.

    Raises:
        InputError: names the first tensor that holds some.
    """
    for name in names:
        kind = reader.dtype(name)
        if kind not in READ and not (name.endswith(PERM_SUFFIX) and kind == "I32"):
            raise InputError(
                f"{reader.path}: {shown(name)} is stored as {kind}, quantized or packed numbers that mean nothing "
                "without their scales; start from the unquantized checkpoint, or save the model dequantized"
            )


def _places(reader: CheckpointReader, family: Family) -> tuple[list[str], set[str]]:
    """Names that must be there, and all that may."""
    required = [f"{family.embedding}.weight", *_of_norm(family, family.norm)]
    if family.positions:
        required.append(f"{family.positions}.weight")
    switched = [norm for norm, switch in family.switched_norms.items() if _has(reader, switch)]
    head = _stored_as(reader, family.head)
    if not reader.config.get("tie_word_embeddings"):
        required += head
    allowed = {*head, family.head + PERM_SUFFIX}
    for block in range(int(reader.config["num_hidden_layers"])):
        for norm in (*family.norms, *switched):
            required += _of_norm(family, f"{family.blocks}.{block}.{norm}")
        for linear in family.linears:
            module = family.linear_name(block, linear)
            required += _stored_as(reader, module)
            allowed.add(module + PERM_SUFFIX)
            if linear in family.biases and _has(reader, family.biases[linear]):
                required.append(f"{module}.bias")
    return required, allowed | set(required)


def _stored_as(reader: CheckpointReader, module: str) -> list[str]:
    if module not in reader.ranks:
        return [f"{module}.weight"]
    suffixes = (P_SUFFIX, C_SUFFIX) if reader.layout == "pivot" else (U_SUFFIX, V_SUFFIX)
    return [module + suffix for suffix in suffixes]


def _of_norm(family: Family, norm: str) -> list[str]:
    return [f"{norm}.weight", *([f"{norm}.bias"] if family.norm_biases else [])]


def _has(reader: CheckpointReader, switch: str) -> bool:
    return not switch or bool(reader.config.get(switch))


def _changes_nothing(reader: CheckpointReader, name: str) -> bool:
    """A bias of zeros, which some programs write for every linear."""
    return name.endswith(".bias") and len(reader.shape(name)) == 1 and not bool(reader.tensor(name).any())


def _refuse_strange(reader: CheckpointReader, names: list[str]) -> None:
    if not names:
        return
    listed = ", ".join(shown(name) for name in names[:NAMED])
    listed += f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    where = f"{reader.path}: holds {listed}"
    if any(part in name for name in names for part in ADAPTERS):
        raise InputError(f"{where}: an adapter that is not merged; merge it into its model first")
    if any(SCORES.search(name) for name in names):
        kinds = reader.config.get("architectures") or ["a classifier"]
        raise InputError(f"{where}: it scores texts ({shown(kinds[0])}) and does not write them; no language model")
    raise InputError(
        f"{where}, for which a {reader.config.get('model_type')} model as config.json describes it has no place"
    )
