"""Records out of a text: JSON lines, a JSON array, one JSON object, a table with a first line of names."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import PurePath
from typing import Any

from ..core.errors import InputError
from ..storage.documents import parse_json

Record = Mapping[str, Any]
Numbered = tuple[str, Record]
"""Where a record stands ("line 7"), and the record."""

PACKED_SUFFIXES = (".gz", ".bz2")
LINES = (".jsonl", ".ndjson", ".jsonlines", ".jl", ".ldjson")
JSON = (*LINES, ".json")
TABLES = {".csv": ",", ".tsv": "\t"}
SHOWN = 8
"""Fields that an error names."""
WHOLE = "text"
"""The field of what is a text itself: a string in a JSON array."""


def records_in(text: str, name: str, asked: bool) -> Iterator[Numbered] | None:
    """The records that a text consists of; None if it is a text itself.

    Content decides. A suffix of JSON or of a table, or a field that was asked for, only says that it must be records.

    Args:
        text: whole.
        name: of the file, for its suffix and in errors.
        asked: whether a field was asked for.

    Raises:
        InputError: here or while they are taken: something in it is no record; names the line.
    """
    suffix = _suffix(name)
    if suffix in TABLES:
        return _table(text, TABLES[suffix], name)
    opening = _OPENING.match(text)
    if opening is not None and opening[1] == "[":
        found = _array(text, name, strings=suffix not in LINES)
        if found is not None:
            return iter(found)
    if opening is not None and opening[1] == "{":
        first, second = opening[2], opening[3]
        if _is_object(first) and (asked or suffix in JSON or not second or second.startswith("{")):
            return _lines(text, name)
        whole = None if _is_object(first) else _parsed(text)
        if isinstance(whole, dict) and (asked or suffix in JSON):
            return iter([("the record", whole)])
    return _lines(text, name) if asked or suffix in JSON else None


def missing_field(name: str, where: str, field: str, fields: Iterable[str]) -> InputError:
    """The error about a record without a field that is wanted; names the fields that could be meant."""
    could = list(islice(fields, SHOWN + 1))
    named = "+".join(could[:SHOWN]) + ("..." if len(could) > SHOWN else "")
    hint = f"; name its text fields: {name}#{named}" if could else ", and none that holds a text"
    return InputError(f"{name}: {where} has no field {field!r}{hint}")


def _array(text: str, name: str, *, strings: bool) -> list[Numbered] | None:
    """The elements of a JSON array, if it is one of objects or, with `strings`, of texts."""
    values = _parsed(text)
    if not isinstance(values, list) or not values:
        return None
    kinds = {type(value) for value in values}
    if strings and kinds == {str}:
        return [(f"element {number}", {WHOLE: value}) for number, value in enumerate(values, start=1)]
    if dict not in kinds:
        return None
    if kinds != {dict}:
        number = next(n for n, value in enumerate(values, start=1) if not isinstance(value, dict))
        raise InputError(f"{name}: element {number} is not a JSON object")
    return [(f"element {number}", value) for number, value in enumerate(values, start=1)]


def _lines(text: str, name: str) -> Iterator[Numbered]:
    for number, line in enumerate(io.StringIO(text, newline="\n"), start=1):
        line = line.removeprefix("\ufeff")  # files with byte-order marks, one after another
        if not line.strip():
            continue
        record = _parsed(line)
        if not isinstance(record, dict):
            hint = "" if isinstance(record, (list, str, int, float)) else "; one record a line is read, or a JSON array"
            raise InputError(f"{name}: line {number} is not a JSON object{hint}")
        yield f"line {number}", record


def _table(text: str, delimiter: str, name: str) -> Iterator[Numbered]:
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            if None in row:
                raise InputError(f"{name}: line {rows.line_num} has more cells than the first line has names")
            yield f"line {rows.line_num}", row
    except csv.Error as error:
        raise InputError(f"{name}: line {rows.line_num} is no line of a table ({error})") from None


def _is_object(text: str) -> bool:
    return isinstance(_parsed(text), dict)


def _parsed(text: str) -> Any:
    """JSON's value; `_parsed` itself where it is none."""
    try:
        return parse_json(text)
    except ValueError:
        return _parsed


def _suffix(name: str) -> str:
    """The suffix in small letters, without that of a packed file."""
    small = PurePath(name.lower())
    return small.with_suffix("").suffix if small.suffix in PACKED_SUFFIXES else small.suffix


_OPENING = re.compile(r"\s*(?=([{\[]))([^\n]*)\n?(?:[^\S\n]*\n)*[^\S\n]*([^\n]?)")
"""The first letter of a text, its first line, and the first letter of the next line that is not empty."""
