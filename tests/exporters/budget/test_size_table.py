"""The choice as people and as machines read it."""

from __future__ import annotations

import json
from io import StringIO

from rich.console import Console

from lowrank_export.converter.core.recipe import make_recipe
from lowrank_export.converter.families.table import family_of
from lowrank_export.exporters.budget.search import Found
from lowrank_export.exporters.budget.size_table import size_json, size_table
from lowrank_export.exporters.budget.sized import Plain, Sized


def sized() -> Sized:
    family = family_of({"model_type": "llama"}, "test")
    choice = {family.linear_name(0, linear): "q5_0" for linear in family.linears}
    choice |= {family.linear_name(0, family.linears[0]): "64 q8_0 iq4_nl", family.embedding: "q8_0"}
    recipe = make_recipe({"model": "m", "max_bytes": 1000, "choice": choice}, "test")
    losses = dict.fromkeys(choice, 0.01)
    found = Found(recipe, 990, 0.08, losses, 0.75)
    return Sized(1000, found, Plain(Found(recipe, 900, 0.2, losses, 1.0), "q4_0", "q6_k"), None)  # type: ignore[arg-type]


def test_every_form_is_shown() -> None:
    family, console = family_of({"model_type": "llama"}, "test"), Console(width=200, file=StringIO())
    console.print(size_table(sized(), family))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for word in (
        "64 q8_0 iq4_nl",
        "99.00%",
        "best plain types: q4_0, q6_k",
        "0.0800",
        "6 q5_0",
        f"{family.embedding} q8_0",
    ):
        assert word in shown, word


def test_json_holds_it_all() -> None:
    family = family_of({"model_type": "llama"}, "test")
    found = json.loads(json.dumps(size_json(sized(), family)))
    assert found["choice"][family.embedding] == {"form": "q8_0", "predicted_loss": 0.01}
    assert (found["bytes"], found["plain"]["linears"], found["outside"]) == (990, "q4_0", [family.embedding])
