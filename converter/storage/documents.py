"""Small documents that people and other programs wrote, YAML and JSON: their size, depth and kind are bounded."""

from __future__ import annotations

import json
import reprlib
from pathlib import Path
from typing import Any

import yaml

from ..core.errors import InputError

MAX_YAML_BYTES = 2**20
MAX_JSON_BYTES = 2**28  # tokenizers and indexes of large models have tens of megabytes
MAX_ALIASES = 100
MAX_DEPTH = 100  # of YAML: PyYAML's time grows with its square, and with the recursion that the caller allows


def parse_json(text: str | bytes) -> Any:
    """JSON of any depth and any length of numbers.

    Raises:
        ValueError: not JSON that can be read; one line that says why.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """YAML of plain values: no objects, no alias inside an anchor (a few lines of such stand for gigabytes).

    Raises:
        ValueError: not YAML that can be read; one line that says why.
    """
    try:
        return yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError, TypeError, AttributeError) as error:  # dates and numbers too
        raise ValueError(str(error).partition("\n")[0] or type(error).__name__) from None


def read_text_file(path: Path, limit: int) -> str:
    """A text file of at most `limit` bytes.

    Raises:
        InputError: missing, no file, too large, or not UTF-8.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not readable, since it is no file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: missing") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"{path}: not readable ({error})") from None
    if len(data) > limit:
        raise InputError(f"{path}: has more than {limit:,} bytes, too many for such a file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not readable as UTF-8 text ({error})") from None


def read_yaml_file(path: Path) -> Any:
    """The value of a YAML file.

    Raises:
        InputError: missing, too large, or not readable as YAML.
    """
    try:
        return parse_yaml(read_text_file(path, MAX_YAML_BYTES))
    except ValueError as error:
        raise InputError(f"{path}: not readable as YAML ({error})") from None


def shown(value: Any) -> str:
    """A value from a document in an error's line: its `repr`, shortened wherever it is long or deep."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # a number of thousands of digits
        return f"a {type(value).__name__} too long to print"


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with aliases and depth bounded."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._anchored = self._aliases = self._depth = 0

    def fetch_flow_collection_start(self, token: Any) -> None:
        """At an opening bracket; the scanner reads many of them before the first value is composed."""
        if self.flow_level >= MAX_DEPTH:
            raise yaml.YAMLError("nested too deeply")
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError("nested too deeply")
        self._depth += 1
        try:
            return self._compose_node(parent, index)
        finally:
            self._depth -= 1

    def _compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            self._aliases += 1
            if self._anchored or self._aliases > MAX_ALIASES:
                raise yaml.YAMLError("an alias inside an anchor, or too many aliases")
            return super().compose_node(parent, index)
        anchored = event.anchor is not None
        self._anchored += anchored
        try:
            return super().compose_node(parent, index)
        finally:
            self._anchored -= anchored


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlevel = 3
