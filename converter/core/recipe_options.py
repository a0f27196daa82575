"""The recipe as options of the command line: every key is an option, given to the commands that take a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import UsageError
from .option_groups import Command, Option, option_group

if TYPE_CHECKING:
    from .recipe import Recipe


RANKS, TEXT, REFINEMENT, ARITHMETIC = "Ranks and factors", "Calibration", "Refinement", "Arithmetic"  # panels of --help


def _recipe_option(help: str, *names: str, panel: str | None = None, metavar: str | None = None) -> Any:
    """An option; without a panel it is among those that `--help` shows first."""
    return typer.Option(*names, help=help, show_default=False, rich_help_panel=panel, metavar=metavar)


METHOD_HELP = (
    "adasvd (default), loss-aware (recommended), or published: svd, fwsvd, asvd, asvd-stable-rank, svd-llm, svd-llm-u, "
    "svd-llm-v2, pifa-m, saes, lc-svd; see docs/methods.md."
)
# Recipe key -> its option. The one place where they are stated: `recipe_options` adds them to a command.
RECIPE_OPTIONS: dict[str, Any] = {
    "model": Annotated[str | None, _recipe_option("Hugging Face folder, hub id, .gguf file, `demo`.", "--model", "-m")],
    "method": Annotated[str | None, _recipe_option(METHOD_HELP)],
    "retention": Annotated[
        float | None, _recipe_option("Kept / original parameters of the linears, in (0, 1]. Default 0.8.")
    ],
    "max_bytes": Annotated[
        str | None,
        _recipe_option("In place of --retention: bytes of the file, such as 80MB; see docs/gguf.md.", metavar="SIZE"),
    ],
    "bits_per_weight": Annotated[
        float | None,
        _recipe_option("In place of --retention: bytes of the file, as bits per weight of the model.", panel=RANKS),
    ],
    "layout": Annotated[
        str | None, _recipe_option("two-factor (default), or pivot: more rank in the same bytes.", panel=RANKS)
    ],
    "min_retention": Annotated[float | None, _recipe_option("Floor of adaCR's retention per block.", panel=RANKS)],
    "rank_multiple": Annotated[
        int | None,
        _recipe_option("Ranks are multiples of this. Default 32; 256 for K-quants of wide models.", panel=RANKS),
    ],
    "keep_dense": Annotated[
        list[str] | None, _recipe_option("Leave matching linears dense (glob; repeatable).", panel=RANKS)
    ],
    "similarity": Annotated[
        str | None, _recipe_option("adaCR's similarity: angular (default) or cosine.", panel=RANKS)
    ],
    "iterations": Annotated[int | None, _recipe_option("adaComp iterations. Default 1.", panel=RANKS)],
    "alpha": Annotated[float | None, _recipe_option("Weight of the dense output in the target, 0 to 1.", panel=RANKS)],
    "truncation": Annotated[
        str | None,
        _recipe_option("two-sided sees loss gradients, one-sided does not. Default: the method's.", panel=RANKS),
    ],
    "allocation": Annotated[
        str | None, _recipe_option("Of ranks: uniform, adacr, threshold. Default: the method's.", panel=RANKS)
    ],
    "gradient_windows": Annotated[
        int | None, _recipe_option("Windows that gradients are taken over. Default 12.", panel=TEXT)
    ],
    "sensitivity_windows": Annotated[
        int | None, _recipe_option("Windows that asvd and lc-svd measure on. Default 2.", panel=TEXT)
    ],
    "refine": Annotated[
        str | None,
        _recipe_option(
            "Gradient descent on the factors: none, block, model. Default: none (lc-svd: block).", panel=REFINEMENT
        ),
    ],
    "refine_epochs": Annotated[
        int | None, _recipe_option("Passes of the refinement over the windows.", panel=REFINEMENT)
    ],
    "refine_rate": Annotated[
        float | None, _recipe_option("First step of the refinement, relative to each tensor.", panel=REFINEMENT)
    ],
    "refine_model_epochs": Annotated[
        int | None, _recipe_option("Passes over the windows, of the whole model.", panel=REFINEMENT)
    ],
    "refine_model_rate": Annotated[float | None, _recipe_option("First step, of the whole model.", panel=REFINEMENT)],
    "refine_alpha": Annotated[
        float | None, _recipe_option("Weight of the dense output in the refinement's target.", panel=REFINEMENT)
    ],
    "calibration": Annotated[
        str | None,
        _recipe_option(
            'Text, FILE#FIELD, windows (.npy), python-docs (default), self, datasets:NAME; several as "A + B".',
            panel=TEXT,
        ),
    ],
    "update_calibration": Annotated[
        str | None,
        _recipe_option(
            "Text or windows the compressed model is fitted on, where not those of --calibration.", panel=TEXT
        ),
    ],
    "windows": Annotated[int | None, _recipe_option("Calibration windows. Default 32.", panel=TEXT)],
    "window_length": Annotated[int | None, _recipe_option("Tokens per window. Default 1024.", panel=TEXT)],
    "held_out": Annotated[
        int | None, _recipe_option("Further windows that no factor is fitted on. Default 2.", panel=TEXT)
    ],
    "calibration_reduction": Annotated[str | None, _recipe_option("moments (default) or stack-of-batch.", panel=TEXT)],
    "buckets": Annotated[int | None, _recipe_option("Buckets of stack-of-batch. Default 16.", panel=TEXT)],
    "seed": Annotated[int | None, _recipe_option("Of everything random. Default 0.", panel=ARITHMETIC)],
    "dtype": Annotated[str | None, _recipe_option("float32 (default), float16 or bfloat16.", panel=ARITHMETIC)],
    "activations": Annotated[
        str | None,
        _recipe_option("Forward passes in float32 or bfloat16; auto: bfloat16 where it is faster.", panel=ARITHMETIC),
    ],
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
        return {key: (option, None) for key, option in RECIPE_OPTIONS.items() if key not in without}

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
