"""Rows of a study, kept one file each with what they were made from, so that no row is made twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from ...converter.core.errors import InputError, UsageError, naming
from ...converter.core.recipe import Recipe
from ...converter.statistics.mixture import text_sha256
from ...converter.storage.documents import MAX_JSON_BYTES, parse_json, read_text_file, shown
from ..report.report import finite, write_json

ROW_VERSION = 2
T = TypeVar("T")


def text_hashes(recipe: Recipe) -> dict[str, str | None]:
    """Recipe key -> hash of the text it names.

    Raises:
        InputError: a text that cannot be read.
    """
    keys = ("calibration", "update_calibration")
    named = {key: spec for key in keys if (spec := getattr(recipe, key)) is not None}
    found = {}
    for key, spec in named.items():
        with naming("--" + key.replace("_", "-")):
            found[key] = text_sha256(spec)
    return found


def write_row(path: Path, key: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Keep a result with what it was made from, atomically."""
    write_json(finite({"schema_version": ROW_VERSION, "made_from": key, "result": result}), path)


def read_row(path: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result kept in a file, or None where there is no file.

    Raises:
        UsageError: the file is damaged, or its result was made from something else.
    """
    try:
        if not path.exists():
            return None
        data = parse_json(read_text_file(path, MAX_JSON_BYTES))
        found, result = dict(data["made_from"]), dict(data["result"])
        version = data["schema_version"]
    except (ValueError, TypeError, KeyError, InputError):
        raise _damaged(path) from None
    wanted = {"schema": ROW_VERSION, **dict(_leaves(finite(key)))}
    there = {"schema": version, **dict(_leaves(found))}
    for name in {**wanted, **there}:
        if wanted.get(name) != there.get(name):
            raise UsageError(
                f"{path}: was made with {name} {shown(there.get(name))}, not {shown(wanted.get(name))}; choose another "
                "--out or add --force to start over"
            )
    return result


def restored(make: Callable[[dict[str, Any]], T], data: dict[str, Any], path: Path) -> T:
    """Make a dataclass of a kept result, every value of the type that it must have.

    Args:
        make: from what JSON gave back.
        data: that.
        path: of the file, for the error.

    Raises:
        UsageError: the file is damaged.
    """
    from pydantic import TypeAdapter

    try:
        made = make(data)
        checked: T = TypeAdapter(type(made)).validate_python(asdict(made))  # type: ignore[call-overload]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _damaged(path) from None
    return checked


def _damaged(path: Path) -> UsageError:
    return UsageError(f"{path}: damaged; remove it to measure it again")


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of nested mappings."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
