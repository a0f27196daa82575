"""What the user asks for: strict, frozen, written beside every result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..budget.forms import Form, read_form
from ..checkpoint.layouts import Layout
from ..methods import METHODS, Refine
from ..storage.byte_size import parse_bytes
from ..storage.documents import read_yaml_file, shown
from .errors import InputError, UsageError
from .nearest import nearest

RECIPE_FILE = "recipe.yaml"
SIZES = frozenset({"max_bytes", "bits_per_weight", "choice"})  # keys in place of a retention
SIZED_METHOD = "loss-aware"
LARGEST = 10**6  # of anything counted: more is a slip, and would be asked of the memory


class Recipe(BaseModel):
    """One compression, whole: the same recipe on the same model gives the same factored checkpoint."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    model: str
    method: str = "adasvd"
    retention: float = Field(0.8, gt=0, le=1)
    max_bytes: int | None = Field(None, ge=1, lt=2**63)
    bits_per_weight: float | None = Field(None, gt=0, le=64)
    max_prefill_flops: float | None = Field(None, gt=0, le=1)
    choice: Mapping[str, str] = Field(default_factory=dict)
    min_retention: float | None = Field(None, ge=0, le=1)
    layout: Layout = "two-factor"
    rank_multiple: int | None = Field(None, ge=1, le=LARGEST)
    keep_dense: tuple[str, ...] = ()
    similarity: Literal["angular", "cosine"] = "angular"
    iterations: int = Field(1, ge=0, le=100)
    alpha: float | None = Field(None, ge=0, le=1)
    truncation: Literal["one-sided", "two-sided"] | None = None
    allocation: Literal["uniform", "adacr", "threshold"] | None = None
    gradient_windows: int = Field(12, ge=1, le=LARGEST)
    sensitivity_windows: int = Field(2, ge=1, le=LARGEST)
    calibration: str = "python-docs"
    update_calibration: str | None = None
    windows: int = Field(32, ge=1, le=LARGEST)
    window_length: int = Field(1024, ge=8, le=LARGEST)
    held_out: int = Field(2, ge=0, le=LARGEST)
    calibration_reduction: Literal["moments", "stack-of-batch"] = "moments"
    buckets: int = Field(16, ge=1, le=LARGEST)
    keep_vocabulary: tuple[str, ...] = ()
    vocabulary_size: int | None = Field(None, ge=1, le=10**8)
    refine: Refine = "none"
    refine_epochs: int = Field(8, ge=1, le=LARGEST)
    refine_rate: float = Field(0.003, gt=0, le=1)
    refine_model_epochs: int = Field(1, ge=1, le=LARGEST)
    refine_model_rate: float = Field(0.0003, gt=0, le=1)
    refine_alpha: float = Field(0.5, ge=0, le=1)
    seed: int = Field(0, ge=0, lt=2**63)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    activations: Literal["auto", "float32", "bfloat16"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _with_the_methods_refinement(cls, values: Any) -> Any:
        """Where nothing is said about refinement, that of the method; a size is met in units of the loss."""
        if isinstance(values, Mapping) and "method" not in values and SIZES & values.keys():
            values = {**values, "method": SIZED_METHOD}
        if isinstance(values, Mapping) and "refine" not in values and values.get("method") in tuple(METHODS):
            return {**values, "refine": METHODS[values["method"]].refine}
        return values

    @field_validator("max_bytes", mode="before")
    @classmethod
    def _as_bytes(cls, value: Any) -> Any:
        """A size as people write it."""
        if not isinstance(value, str):
            return value
        bytes = parse_bytes(value)
        if bytes is None or not 1 <= bytes < 2**63:
            raise ValueError("expected a size such as 80MB or 1.5GiB")
        return int(bytes)

    @field_validator("choice")
    @classmethod
    def _of_forms(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for name, form in value.items():
            try:
                read_form(form)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return value

    @property
    def sized(self) -> bool:
        """Whether a size is asked for, in place of a retention."""
        return self.max_bytes is not None or self.bits_per_weight is not None

    @property
    def forms(self) -> dict[str, Form]:
        """Matrix -> what it becomes, where that was chosen."""
        return {name: read_form(form) for name, form in self.choice.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.method not in METHODS:
            raise ValueError(f"method: unknown method {self.method!r}{nearest(self.method, METHODS)}")
        if self.update_calibration is not None and not METHODS[self.method].needs_compressed_stream:
            raise ValueError(f"update_calibration: {self.method} fits nothing on the compressed model")
        if self.alpha and not METHODS[self.method].needs_compressed_stream:
            raise ValueError(f"alpha: {self.method} fits nothing on the compressed model")
        if (self.sized or self.choice) and not (METHODS[self.method].two_sided and self.truncation != "one-sided"):
            raise ValueError(f"method: {self.method} does not see the loss; a size is met with {SIZED_METHOD}")
        if self.sized and self.layout != "two-factor":
            raise ValueError(f"layout: a size is met with two factors, not with {self.layout}")
        if self.vocabulary_size is not None and not self.keep_vocabulary:
            raise ValueError("vocabulary_size: of which tokens? give keep_vocabulary, a text whose tokens are kept")
        if self.max_bytes is not None and self.bits_per_weight is not None:
            raise ValueError("bits_per_weight: is a size, and so is max_bytes; give one of the two")
        if self.max_prefill_flops is not None and not (self.sized or self.choice):
            raise ValueError("max_prefill_flops: goes with a size; give max_bytes or bits_per_weight too")
        if self.min_retention is not None and self.min_retention > self.retention:
            raise ValueError(f"min_retention: {self.min_retention} is above retention {self.retention}")
        return self

    def to_yaml(self) -> str:
        """The recipe as YAML that `read_recipe` reads back to an equal recipe."""
        values = self.model_dump(mode="json")
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        # PyYAML writes a few line separators (U+0085) as they are and reads them back as spaces: escape them
        return text if yaml.safe_load(text) == values else yaml.safe_dump(values, sort_keys=False)


def make_recipe(values: Mapping[str, Any], where: str) -> Recipe:
    """Check values from a command line or file.

    Args:
        values: recipe keys; lists are accepted for tuples.
        where: named in errors.

    Raises:
        UsageError: one line naming the key, what is wrong and the nearest known key.
    """
    unknown = [key for key in values if key not in Recipe.model_fields]
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}{nearest(str(unknown[0]), Recipe.model_fields)}")
    prepared = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return Recipe.model_validate(prepared)
    except ValidationError as error:
        first = error.errors()[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        key = ".".join(str(part) for part in first["loc"])
        given = f" (given: {shown(first['input'])})" if key and first["type"] != "missing" else ""
        raise UsageError(f"{where}: {key + ': ' if key else ''}{message}{given}") from None


def recipe_grid(
    values: Mapping[str, Any], methods: Sequence[str], retentions: Sequence[Any], where: str
) -> tuple[Recipe, ...]:
    """One checked recipe per method and retention, by falling retention.

    Args:
        values: recipe keys that all have in common; method and retention among them are ignored.
        methods: in the order wanted; what occurs twice counts once.
        retentions: unchecked, in any order.
        where: named in errors.

    Raises:
        UsageError: one line about the first recipe that cannot be.
    """
    names, sizes = dict.fromkeys(methods), dict.fromkeys(retentions)
    made = [make_recipe({**values, "method": m, "retention": r}, where) for r in sizes for m in names]
    refined = {recipe.refine != "none": recipe.method for recipe in made}
    if len(refined) > 1 and not made[0].held_out:  # the refinement would take calibration windows from all
        raise UsageError(
            f"{where}: held_out: 0, but {refined[True]} refines and holds windows out, {refined[False]} does not; "
            "use 1 or more"
        )
    return tuple(sorted(made, key=lambda recipe: -recipe.retention))


def in_common(recipes: Sequence[Recipe]) -> dict[str, Any]:
    """The keys of a grid on which all its recipes agree, JSON-ready; method and retention never."""
    first, *others = (recipe.model_dump(mode="json", exclude={"method", "retention"}) for recipe in recipes)
    return {key: value for key, value in first.items() if all(other[key] == value for other in others)}


def read_recipe_values(path: Path) -> dict[str, Any]:
    """The keys of a recipe file, unchecked.

    Raises:
        InputError: not readable as a YAML mapping.
    """
    if not path.exists():
        raise InputError(f"{path}: no such recipe")
    data = read_yaml_file(path)
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a YAML mapping of recipe keys")
    return {str(key): value for key, value in data.items()}


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe file."""
    return make_recipe(read_recipe_values(path), str(path))
