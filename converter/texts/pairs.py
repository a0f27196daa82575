"""Pictures with texts about them: records of a file that name both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..storage.documents import shown
from .records import missing_field, records_in
from .unpacking import decoded, read_bytes

PICTURE = "image"
"""The field of a record that names a picture, from the folder of the records on."""


@dataclass(frozen=True)
class Pair:
    """A picture and a text about it.

    Attributes:
        where: they stand, for errors.
        picture: its file.
        text: with or without the token that stands for a picture.
    """

    where: str
    picture: Path
    text: str


def names_pairs(spec: str) -> bool:
    """Whether a spec names pictures with texts: `FILE#image+FIELD`."""
    return _field(spec) is not None


def read_pairs(spec: str) -> list[Pair]:
    """The pairs that a file of records holds.

    Args:
        spec: `FILE#image+FIELD`.

    Raises:
        InputError: it cannot be read, a record lacks one of the two, or a picture is not there.
    """
    path, field = Path(spec.rpartition("#")[0]).expanduser(), _field(spec)
    assert field is not None
    try:
        records = records_in(decoded(read_bytes(path, spec), str(path)), str(path), asked=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{spec}: not readable as UTF-8 text ({error})") from None
    found = []
    for where, record in records or ():
        for name in (PICTURE, field):
            if name not in record:
                raise missing_field(str(path), where, name, (key for key, value in record.items() if value is not None))
        named: Any = record[PICTURE]
        if not isinstance(named, str) or not isinstance(record[field], str):
            raise InputError(f"{path}: {where}: {shown(named)} and {shown(record[field])} are no picture and text")
        picture = path.parent / named
        if not picture.is_file():
            raise InputError(f"{path}: {where}: no picture {shown(named)} is there")
        found.append(Pair(f"{path}: {where}", picture, record[field]))
    return found


def _field(spec: str) -> str | None:
    """The field of the text, if a spec names one beside a picture's."""
    file, _, fields = spec.rpartition("#")
    picture, _, text = fields.partition("+")
    return text if file and picture == PICTURE and text and "+" not in text else None
