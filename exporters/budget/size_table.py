"""What a size is spent on, as a table for people and as data."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from ...converter.families.family import Family
from .search import Found
from .sized import Sized

if TYPE_CHECKING:
    from rich.console import RenderableType


def size_table(sized: Sized, family: Family) -> RenderableType:
    """The form of every matrix, one row a block, and what the file comes to beside the best plain types.

    Args:
        sized: what was chosen.
        family: of the model.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    choice, blocks = dict(sized.found.recipe.choice), Table(title="Form of every linear", title_justify="left")
    blocks.add_column("block", justify="right")
    for linear in family.linears:
        blocks.add_column(linear.rsplit(".", 1)[-1])
    for index in range(_blocks(choice, family)):
        blocks.add_row(str(index), *(choice[family.linear_name(index, linear)] for linear in family.linears))
    rest = ", ".join(f"{module} {choice[module]}" for module in _outside(choice, family))
    files = Table(title="Files", title_justify="left")
    for column in ("", "bytes", "MB", "of the size", "prompt FLOPs", "predicted KLD"):
        files.add_column(column, justify="right" if column else "left")
    plain = sized.plain
    rows: list[tuple[str, Found]] = [("chosen", sized.found)]
    if plain is not None:
        rows.append((f"best plain types: {plain.type}, {plain.rest}", plain.found))
    for name, found in rows:
        share = f"{found.bytes / sized.budget:.2%}"
        files.add_row(
            name, str(found.bytes), f"{found.bytes / 1e6:.1f}", share, f"{found.flops:.1%}", f"{found.loss:.4f}"
        )
    kinds = Counter("two factors" if form.rank else form.types[0] for form in sized.found.recipe.forms.values())
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    legend = Text(
        "A form is a type, or rank, type of U and type of V. FLOPs: of the blocks' linears, as share of the dense.",
        style="dim",
    )
    return Group(blocks, legend, Text(f"Outside the blocks: {rest}. In all: {counted}."), files)


def size_json(sized: Sized, family: Family) -> dict[str, Any]:
    """The same as JSON-ready data, with the predicted loss of every matrix."""
    plain = sized.plain
    return {
        "budget": sized.budget,
        "bytes": sized.found.bytes,
        "predicted_loss": sized.found.loss,
        "prefill_flops": sized.found.flops,
        "choice": {
            module: {"form": form, "predicted_loss": sized.found.losses[module]}
            for module, form in sized.found.recipe.choice.items()
        },
        "plain": plain
        and {
            "linears": plain.type,
            "rest": plain.rest,
            "bytes": plain.found.bytes,
            "predicted_loss": plain.found.loss,
        },
        "outside": _outside(dict(sized.found.recipe.choice), family),
    }


def _outside(choice: dict[str, str], family: Family) -> list[str]:
    return [module for module in (family.embedding, family.head) if module in choice]


def _blocks(choice: dict[str, str], family: Family) -> int:
    return (len(choice) - len(_outside(choice, family))) // len(family.linears)
