"""What a recipe's choice means to any format: the word for it, how it is rounded, and whether it is the format's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ..converter.budget.forms import Form
from ..converter.checkpoint.reader import CheckpointReader
from ..converter.core.errors import UsageError
from ..converter.core.recipe import RECIPE_FILE, read_recipe

CHOSEN = "budget"
"""In place of a type: those that a recipe's choice gives every matrix."""
ALPHA = 0.4  # of aware rounding in chosen types, as of the fit that they are chosen for


def recorded_forms(reader: CheckpointReader) -> Mapping[str, Form]:
    """What a checkpoint's recipe chose for every matrix.

    Raises:
        UsageError: it chose nothing.
    """
    path = reader.path / RECIPE_FILE
    forms = read_recipe(path).forms if path.is_file() else {}
    if not forms:
        raise UsageError(f"{reader.path}: was not made for a size, so nothing chose its types; export in another type")
    return forms


def check_types(forms: Iterable[Form], types: Collection[str], format: str) -> None:
    """Refuse a choice that was made for another format.

    Args:
        forms: of the choice.
        types: that the format knows.
        format: its name.

    Raises:
        UsageError: names a type that it lacks.
    """
    unknown = next((type for form in forms for type in form.types if type not in types), None)
    if unknown is not None:
        raise UsageError(f"choice: {unknown} is no type of {format}: a choice is of the one format it was made for")
