"""Names of tensors under a prefix that wrappers left: compiled, distributed, or part of a larger model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..families.family import Family


@dataclass(frozen=True)
class Prefix:
    """What names begin with in the files, and what with in the model."""

    stored: str
    plain: str


def foreign_prefixes(names: Iterable[str], family: Family | None) -> tuple[Prefix, ...]:
    """What to put for the beginnings of a checkpoint's names, so that they are the model's own.

    The token embedding gives it away: whatever stands before `embed_tokens` stands before all else of the model's
    body, and what of it a wrapper added stands before the head too. Nothing is renamed where the embedding has its
    own name, where there is not exactly one, or where a tensor would be left without a place.

    Args:
        names: of all tensors.
        family: of the model.

    Returns:
        In the order in which they are tried; none for a checkpoint that needs none.
    """
    names = tuple(names)
    if family is None or family.embedding + ".weight" in names:
        return ()
    body, _, leaf = family.embedding.rpartition(".")
    found = [name for name in names if f".{name}".endswith(f".{leaf}.weight")]
    if len(found) != 1:
        return ()
    before = found[0].removesuffix(f"{leaf}.weight")
    head = f"{family.head}.weight"
    heads = [name.removesuffix(head) for name in names if f".{name}".endswith(f".{head}")]
    wrapper = heads[0] if heads and before.startswith(heads[0]) else ""
    prefixes = (Prefix(f"{wrapper}{family.head}.", f"{family.head}."), Prefix(before, f"{body}."))
    covered = all(any(name.startswith(prefix.stored) for prefix in prefixes) for name in names)
    return prefixes if covered else ()


def plain_name(name: str, prefixes: tuple[Prefix, ...], renamed: Mapping[str, str]) -> str:
    """A tensor's name in the model.

    Args:
        name: in the files.
        prefixes: of the checkpoint.
        renamed: parts of names in files -> what the model says in their place.
    """
    for stored, plain in renamed.items():
        name = name.replace(stored, plain)
    for prefix in prefixes:
        if name.startswith(prefix.stored):
            return prefix.plain + name.removeprefix(prefix.stored)
    return name
