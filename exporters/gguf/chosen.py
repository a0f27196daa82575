"""The types that a recipe's choice gives the matrices of a file."""

from __future__ import annotations

from collections.abc import Mapping

from ...converter.budget.forms import Form
from ...converter.checkpoint.layouts import U_SUFFIX, V_SUFFIX
from ...converter.families.family import Gguf
from ..chosen import check_types
from .names import gguf_name
from .types import TYPES


def chosen_types(forms: Mapping[str, Form], of: Gguf) -> dict[str, str]:
    """GGUF name -> type of every matrix, as a recipe's choice has them.

    Args:
        forms: module of the checkpoint -> what it becomes.
        of: the model's family.

    Raises:
        UsageError: a type of another format.
        InputError: the family has no such module.
    """
    check_types(forms.values(), TYPES, "gguf")
    found: dict[str, str] = {}
    for module, form in forms.items():
        endings = ("weight",) if form.rank is None else (U_SUFFIX.lstrip("."), V_SUFFIX.lstrip("."))
        for ending, type in zip(endings, form.types, strict=True):
            name = gguf_name(f"{module}.{ending}", of)
            if name is not None:
                found[name] = type
    return found
