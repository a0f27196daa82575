"""Records out of a Parquet file, row by row; pyarrow reads it, and is an extra."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from .records import Numbered, missing_field
from .unpacking import most_unpacked

ROWS = 64
"""Rows that are in memory at a time."""
MOST_ROWS = 2**26


def rows_in(path: Path, fields: tuple[str, ...]) -> Iterator[Numbered]:
    """The rows of a Parquet file, of them only the columns that are asked for, where it has them.

    Raises:
        InputError: pyarrow is missing, or the file is damaged, or says that it becomes more than a text does.
    """
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError(
            f"{path}: is Parquet, which pyarrow reads: pip install lowrank-export[parquet]; or write it as JSON lines"
        ) from None
    number = 0
    try:
        schema = parquet.read_schema(path)
        if missing := [field for field in fields if field not in schema.names]:
            raise missing_field(str(path), "the table", missing[0], _columns(schema, "string", "list"))
        repeated = [name for name in _columns(schema, "string") if name in fields]
        with parquet.ParquetFile(path, read_dictionary=repeated) as file:
            _check_size(path, file.metadata, fields)
            for batch in file.iter_batches(batch_size=ROWS, columns=list(fields)):
                columns = [(name, batch.column(name)) for name in fields]
                for index in range(batch.num_rows):  # one by one: a few bytes may stand for many equal texts
                    number += 1
                    yield f"row {number}", {name: _trimmed(column[index].as_py()) for name, column in columns}
    except (InputError, MemoryError, GeneratorExit):
        raise
    except Exception as error:  # pyarrow's errors share no base class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not readable as Parquet ({reason})") from None


def _check_size(path: Path, metadata: Any, fields: tuple[str, ...]) -> None:
    """What the columns take once they are unpacked, as the file's end says."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [group.column(index) for group in groups for index in range(group.num_columns)]
    wanted = [column for column in columns if column.path_in_schema.split(".")[0] in fields]
    total, size = sum(max(column.total_uncompressed_size, 0) for column in wanted), path.stat().st_size
    if total > most_unpacked(size):
        raise InputError(f"{path}: {size:,} bytes become {total:,} once they are unpacked, which no text does")
    if metadata.num_rows > MOST_ROWS:
        raise InputError(f"{path}: has {metadata.num_rows:,} rows, more than the {MOST_ROWS:,} that are read")


def _columns(schema: Any, *kinds: str) -> list[str]:
    """Columns whose type is named so: "string", or "list", which may hold conversations."""
    return [field.name for field in schema if str(field.type).removeprefix("large_").startswith(kinds)]


def _trimmed(value: Any) -> Any:
    """A conversation whose messages have only the keys that are set: a table gives each message every key."""
    if not isinstance(value, list):
        return value
    return [
        {key: item for key, item in one.items() if item is not None} if isinstance(one, dict) else one for one in value
    ]
