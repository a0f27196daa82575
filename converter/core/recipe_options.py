"""The recipe as options of the command line: every key is an option, given to the commands that take a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import UsageError
from .option_groups import Command, Option, option, option_group

if TYPE_CHECKING:
    from .recipe import Recipe


RANKS, TEXT, REFINEMENT, ARITHMETIC = "Ranks and factors", "Calibration", "Refinement", "Arithmetic"  # panels of --help
VOCABULARY = ("keep_vocabulary", "vocabulary_size")  # a stage of the whole job alone


METHOD_HELP = (
    "adasvd (default), loss-aware (recommended), or published: svd, fwsvd, asvd, asvd-stable-rank, svd-llm, svd-llm-u, "
    "svd-llm-v2, pifa-m, saes, lc-svd; see docs/methods.md."
)
# Recipe key -> its option. The one place where they are stated: `recipe_options` adds them to a command.
RECIPE_OPTIONS: dict[str, Any] = {
    "model": option(str | None, "Hugging Face folder, hub id, .gguf file, `demo`.", "--model", "-m"),
    "keep_vocabulary": option(
        list[str] | None, "First drop the tokens that texts do not use; repeatable. See docs/vocabulary.md.", panel=TEXT
    ),
    "vocabulary_size": option(int | None, "Of them the most frequent, as many.", panel=TEXT),
    "method": option(str | None, METHOD_HELP),
    "retention": option(float | None, "Kept / original parameters of the linears, in (0, 1]. Default 0.8."),
    "max_bytes": option(
        str | None,
        "In place of --retention: bytes of the export, such as 80MB; see docs/gguf.md.",
        metavar="SIZE",
    ),
    "bits_per_weight": option(
        float | None, "In place of --retention: bytes of the file, as bits per weight of the model.", panel=RANKS
    ),
    "max_prefill_flops": option(
        float | None, "Beside a size: share of the dense linears' operations per token of a prompt.", panel=RANKS
    ),
    "layout": option(str | None, "two-factor (default), or pivot: more rank in the same bytes.", panel=RANKS),
    "min_retention": option(float | None, "Floor of adaCR's retention per block.", panel=RANKS),
    "rank_multiple": option(
        int | None, "Ranks are multiples of this. Default 32; 256 for K-quants of wide models.", panel=RANKS
    ),
    "keep_dense": option(list[str] | None, "Leave matching linears dense (glob; repeatable).", panel=RANKS),
    "similarity": option(str | None, "adaCR's similarity: angular (default) or cosine.", panel=RANKS),
    "iterations": option(int | None, "adaComp iterations. Default 1.", panel=RANKS),
    "alpha": option(float | None, "Weight of the dense output in the target, 0 to 1.", panel=RANKS),
    "truncation": option(
        str | None, "two-sided sees loss gradients, one-sided does not. Default: the method's.", panel=RANKS
    ),
    "allocation": option(str | None, "Of ranks: uniform, adacr, threshold. Default: the method's.", panel=RANKS),
    "gradient_windows": option(int | None, "Windows that gradients are taken over. Default 12.", panel=TEXT),
    "sensitivity_windows": option(int | None, "Windows that asvd and lc-svd measure on. Default 2.", panel=TEXT),
    "refine": option(
        str | None,
        "Gradient descent on the factors: none, block, model. Default: none (lc-svd: block).",
        panel=REFINEMENT,
    ),
    "refine_epochs": option(int | None, "Passes of the refinement over the windows.", panel=REFINEMENT),
    "refine_rate": option(float | None, "First step of the refinement, relative to each tensor.", panel=REFINEMENT),
    "refine_model_epochs": option(int | None, "Passes over the windows, of the whole model.", panel=REFINEMENT),
    "refine_model_rate": option(float | None, "First step, of the whole model.", panel=REFINEMENT),
    "refine_alpha": option(float | None, "Weight of the dense output in the refinement's target.", panel=REFINEMENT),
    "calibration": option(
        str | None,
        'Text, FILE#FIELD, windows (.npy), python-docs (default), self, datasets:NAME; several as "A + B".',
        panel=TEXT,
    ),
    "update_calibration": option(
        str | None, "Text or windows the compressed model is fitted on, where not those of --calibration.", panel=TEXT
    ),
    "windows": option(int | None, "Calibration windows. Default 32.", panel=TEXT),
    "window_length": option(int | None, "Tokens per window. Default 1024.", panel=TEXT),
    "held_out": option(int | None, "Further windows that no factor is fitted on. Default 2.", panel=TEXT),
    "calibration_reduction": option(str | None, "moments (default) or stack-of-batch.", panel=TEXT),
    "buckets": option(int | None, "Buckets of stack-of-batch. Default 16.", panel=TEXT),
    "seed": option(int | None, "Of everything random. Default 0.", panel=ARITHMETIC),
    "dtype": option(str | None, "float32 (default), float16 or bfloat16.", panel=ARITHMETIC),
    "activations": option(
        str | None, "Forward passes in float32 or bfloat16; auto: bfloat16 where it is faster.", panel=ARITHMETIC
    ),
}
Given = dict[str, Any]
"""Recipe key -> its value on the command line; None, or nothing in a list, where it was not given."""
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help="Recipe file; options override it. Default: ./recipe.yaml without --model.",
    ),
]


def recipe_options(*without: str) -> Callable[[Command], Command]:
    """Give a command every option of RECIPE_OPTIONS but `without`; their values reach its parameter `given`."""

    def offered() -> Mapping[str, Option]:
        return {key: (annotation, None) for key, annotation in RECIPE_OPTIONS.items() if key not in without}

    return option_group("given", offered)


def chosen_recipe(path: Path | None, given: Given) -> Recipe:
    """Recipe file, overridden by options."""
    from .recipe import make_recipe

    return make_recipe(*_recipe_values(path, given))


def _recipe_values(path: Path | None, given: Given) -> tuple[dict[str, Any], str]:
    """The keys of the recipe file, overridden by options, and what errors call them."""
    from .recipe import RECIPE_FILE, SIZES, read_recipe_values

    given = {key: value for key, value in given.items() if value not in (None, [])}
    default = Path(RECIPE_FILE)
    if path is None and "model" not in given and default.is_file():
        path = default
    if path is None and "model" not in given:
        raise UsageError(f"nothing to do: give --model (try `--model demo`), or put a {RECIPE_FILE} in this folder")
    values = read_recipe_values(path) if path is not None else {}
    size = sorted(SIZES & given.keys())
    if size and "retention" in given:
        raise UsageError(f"--retention: --{size[0].replace('_', '-')} is given in its place; give one of the two")
    if size or "retention" in given:  # the file's size and what was chosen for it give way
        values = {key: value for key, value in values.items() if key not in SIZES}
        if not size:
            values.pop("max_prefill_flops", None)
    return {**values, **given}, str(path) if path is not None and not given else "command line"


def chosen_recipes(
    path: Path | None, given: Given, methods: Sequence[str], retentions: Sequence[float | str]
) -> tuple[Recipe, ...]:
    """A recipe per method and retention."""
    from .recipe import recipe_grid

    values, where = _recipe_values(path, given)
    return recipe_grid(values, methods, retentions, where)


def listed(given: list[str] | None) -> list[str]:
    """Words of a repeatable option, each a comma-separated list."""
    return [word.strip() for part in given or [] for word in part.split(",") if word.strip()]


def numbers(given: list[str] | None) -> list[float | str]:
    """Numbers of such an option; a word that is none stays as it is: the recipe's own check names it."""

    def number(word: str) -> float | str:
        try:
            return float(word)
        except ValueError:
            return word

    return [number(word) for word in listed(given)]
