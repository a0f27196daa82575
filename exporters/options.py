"""What is exported, as options of the command line: the formats, and the options of every target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from ..converter.core.errors import UsageError
from ..converter.core.option_groups import Command, Option, option_group
from .registry import TARGETS, target
from .target import SCOPES, ExportRequest, Given, Scope

Format = Annotated[
    list[str] | None,
    typer.Option("--format", "-f", help="gguf or onnx; repeatable.", metavar="NAME", show_default=False),
]
Calibration = Annotated[
    str | None, typer.Option(help="Text to run, as for `compress`. Default: the one the checkpoint records.")
]
ExportValues = dict[str, Any]
"""Option -> value, of the formats and of all targets."""


def export_options(scope: Scope) -> Callable[[Command], Command]:
    """Give a command the options of exports; their values reach its parameter `exports`."""

    def offered() -> Mapping[str, Option]:
        own = {
            name: (option.annotation, option.default)
            for row in TARGETS.values()
            for name, option in row.options.items()
            if option.scope in SCOPES[scope]
        }
        return {"format": (Format, None), **own}

    return option_group("exports", offered)


def chosen_exports(
    values: ExportValues, *, calibration: str | None = None, device: str = "cpu", sized: bool = False
) -> tuple[ExportRequest, ...]:
    """Every export that is asked for, once; in the default format and types where nothing was asked for.

    Options of formats that were not asked for are checked too.

    Args:
        values: of `export_options`.
        calibration: the text that rounding runs, where it is not the one that the checkpoint records.
        device: that it runs on.
        sized: whether a size is asked for, which chooses types itself.

    Raises:
        UsageError: names the option, or more than a size leaves open.
    """
    formats = [target(name).format for name in values.get("format") or [next(iter(TARGETS))]]
    given = Given(values, calibration, device)
    if sized:
        return (_sized(formats, given),)
    every = {format: row.requests(given) for format, row in TARGETS.items()}
    chosen = tuple(dict.fromkeys(request for format in formats for request in every[format]))
    if calibration is not None and not any(request.reads_calibration for request in chosen):
        raise UsageError("--calibration: plain rounding runs no text; add --gguf-rounding aware")
    return chosen


def _sized(formats: list[str], given: Given) -> ExportRequest:
    """The one export whose types a size chooses."""
    asked = any(given.values.get(f"{format}_type") for format in TARGETS)
    request = target(formats[0]).sized_request(given)
    if request is None or asked or set(formats) != {request.format}:
        raise UsageError("a size is met in one format, and chooses its types: leave out types and other formats")
    return request
