"""Options over a recipe file: a size and a retention stand in each other's place."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowrank_export.converter.core.errors import UsageError
from lowrank_export.converter.core.recipe_options import chosen_recipe


@pytest.mark.parametrize("size", [{"max_bytes": "80MB"}, {"bits_per_weight": 5.0}])
def test_a_size_and_a_retention_are_two_wishes(size: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"--retention: --(max-bytes|bits-per-weight) is given in its place"):
        chosen_recipe(None, {"model": "demo", "method": "loss-aware", "retention": 0.5, **size})


def test_an_option_replaces_the_size_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("{model: demo, method: loss-aware, max_bytes: 80MB, choice: {lm_head: q8_0}}")
    assert chosen_recipe(file, {}).max_bytes == 80_000_000 and chosen_recipe(file, {}).choice
    retained = chosen_recipe(file, {"retention": 0.5})
    assert not retained.sized and not retained.choice and retained.retention == 0.5
    other = chosen_recipe(file, {"bits_per_weight": 5.0})
    assert other.max_bytes is None and other.bits_per_weight == 5.0 and not other.choice
