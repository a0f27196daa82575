"""The types that a recipe's choice gives the matrices of a file."""

from __future__ import annotations

from collections.abc import Mapping

from ...converter.budget.forms import Form
from ...converter.checkpoint.layouts import U_SUFFIX, V_SUFFIX
from ...converter.checkpoint.reader import CheckpointReader
from ...converter.core.errors import UsageError
from ...converter.core.recipe import RECIPE_FILE, read_recipe
from ...converter.families.family import Gguf
from .names import gguf_name


def recorded_forms(reader: CheckpointReader) -> Mapping[str, Form]:
    """What a checkpoint's recipe chose for every matrix.

    Raises:
        UsageError: it chose nothing.
    """
    path = reader.path / RECIPE_FILE
    forms = read_recipe(path).forms if path.is_file() else {}
    if not forms:
        raise UsageError(f"{reader.path}: was not made for a size, so nothing chose its types; export in a type or mix")
    return forms


def chosen_types(forms: Mapping[str, Form], of: Gguf) -> dict[str, str]:
    """GGUF name -> type of every matrix, as a recipe's choice has them.

    Args:
        forms: module of the checkpoint -> what it becomes.
        of: the model's family.

    Raises:
        InputError: the family has no such module.
    """
    found: dict[str, str] = {}
    for module, form in forms.items():
        endings = ("weight",) if form.rank is None else (U_SUFFIX.lstrip("."), V_SUFFIX.lstrip("."))
        for ending, type in zip(endings, form.types, strict=True):
            name = gguf_name(f"{module}.{ending}", of)
            if name is not None:
                found[name] = type
    return found
