"""Recipes: strict, frozen, and the same after a trip through YAML."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lowrank_export.converter.core.errors import InputError, UsageError
from lowrank_export.converter.core.recipe import (
    Recipe,
    in_common,
    make_recipe,
    nearest,
    read_recipe,
    read_recipe_values,
    recipe_grid,
)
from lowrank_export.converter.methods import METHODS

WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    retention = draw(st.floats(0, 1, exclude_min=True))
    return Recipe(
        model=draw(WORDS),
        method=draw(st.sampled_from(sorted(METHODS))),
        retention=retention,
        min_retention=draw(st.none() | st.floats(0, retention)),
        rank_multiple=draw(st.none() | st.integers(1, 512)),
        keep_dense=tuple(draw(st.lists(WORDS, max_size=3))),
        similarity=draw(st.sampled_from(["angular", "cosine"])),
        calibration=draw(WORDS),
        window_length=draw(st.integers(8, 4096)),
        seed=draw(st.integers(0, 2**63 - 1)),
        dtype=draw(st.sampled_from(["float32", "float16", "bfloat16"])),
    )


@given(recipe=recipes())
def test_yaml_gives_the_same_recipe_back(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert read_recipe(path) == recipe


def test_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: demo\nretention: 1\nkeep_dense: ['*.down_proj']\n", encoding="utf-8")
    recipe = read_recipe(path)
    assert (recipe.retention, recipe.keep_dense, recipe.method) == (1.0, ("*.down_proj",), "adasvd")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"retentoin": 0.5}, "unknown key 'retentoin'; did you mean 'retention'"),
        ({"zzz": 1}, "unknown key 'zzz'; known: model, method"),
        ({"method": "adsvd"}, "unknown method 'adsvd'; did you mean 'adasvd'"),
        ({"method": "zzz"}, "unknown method 'zzz'; known: svd, "),
        ({"similarity": "sine"}, r"similarity: Input should be 'angular' or 'cosine' \(given: 'sine'\)"),
        ({"dtype": "float64"}, "dtype: .*'bfloat16'.*'float64'"),
        ({"retention": 0.0}, r"retention: .*greater than 0 \(given: 0.0\)"),
        ({"retention": 1.01}, r"retention: .*less than or equal to 1 \(given: 1.01\)"),
        ({"retention": -0.2}, "retention"),
        ({"retention": float("nan")}, "retention"),
        ({"retention": 0.5, "min_retention": 0.6}, "min_retention: 0.6 is above retention 0.5"),
        ({"method": "svd", "alpha": 0.3}, "alpha: svd fits nothing on the compressed model"),
        ({"rank_multiple": 0}, "rank_multiple"),
        ({"window_length": 7}, "window_length"),
        # strict: nothing is guessed from another type
        ({"retention": "0.5"}, "retention: .*given: '0.5'"),
        ({"windows": 3.0}, "windows"),
        ({"seed": True}, "seed"),
        ({"keep_dense": "*.mlp.*"}, "keep_dense"),
        ({"model": 7}, "model"),
    ],
)
def test_wrong_values_are_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        make_recipe({"model": "demo", **values}, "here")
    assert str(error.value).startswith("here: ") and "\n" not in str(error.value)


def test_refinement_is_the_methods_where_nothing_is_said() -> None:
    assert Recipe(model="demo", method="lc-svd").refine == "block"
    assert Recipe(model="demo", method="lc-svd", refine="none").refine == "none"
    assert Recipe(model="demo", method="svd-llm").refine == Recipe(model="demo").refine == "none"
    made = recipe_grid({"model": "demo"}, ["svd-llm", "lc-svd"], [0.8], "here")
    assert [recipe.refine for recipe in made] == ["none", "block"]


def test_a_model_is_needed() -> None:
    with pytest.raises(UsageError, match=r"^here: model: Field required$"):
        make_recipe({}, "here")


def test_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe(model="demo").retention = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"- a\n- b\n", "expected a YAML mapping"), (b"a: [1\n", "not readable as YAML"), (b"\xff\xfe\xff", "readable")],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_recipe_values(tmp_path / "r.yaml")
    assert "\n" not in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such recipe"):
        read_recipe(tmp_path / "none.yaml")


@given(word=st.text(string.ascii_lowercase, max_size=8))
def test_nearest_always_helps(word: str) -> None:
    assert any(name in nearest(word, METHODS) for name in METHODS)


def test_a_grid_of_recipes() -> None:
    made = recipe_grid({"model": "demo", "retention": 0.1}, ["svd-llm", "svd", "svd-llm"], [0.6, 0.8, 0.6], "here")
    assert [(recipe.method, recipe.retention) for recipe in made] == [
        ("svd-llm", 0.8),
        ("svd", 0.8),
        ("svd-llm", 0.6),
        ("svd", 0.6),
    ]
    with pytest.raises(UsageError, match=r"here: retention: .*'much'"):
        recipe_grid({"model": "demo"}, ["svd"], ["much"], "here")


def test_a_grid_of_which_one_method_refines() -> None:
    values = {"model": "demo", "windows": 7}
    made = recipe_grid(values, ["svd-llm", "lc-svd"], [0.8, 0.6], "here")
    common = in_common(made)
    assert common["windows"] == 7 and common.keys().isdisjoint({"method", "retention", "refine"})
    assert in_common(made[:1])["refine"] == "none"
    with pytest.raises(UsageError, match=r"held_out: 0, but lc-svd refines .*svd-llm"):
        recipe_grid({**values, "held_out": 0}, ["svd-llm", "lc-svd"], [0.8], "here")
    recipe_grid({**values, "held_out": 0}, ["lc-svd"], [0.8], "here")
    recipe_grid({**values, "held_out": 0, "refine": "block"}, ["svd-llm", "lc-svd"], [0.8], "here")
