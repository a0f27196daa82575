"""Options that several commands offer, declared once: a group of them reaches a command as one dictionary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import typer

Command = Callable[..., Any]
Option = tuple[Any, Any]
"""Annotation for Typer, and default."""


def option(
    kind: Any,
    help: str,
    *names: str,
    panel: str | None = None,
    metavar: str | None = None,
    min: int | None = None,
) -> Any:
    """The annotation of an option of a group.

    Args:
        kind: type of its value.
        help: its line of `--help`.
        names: of the option, where they are not its parameter's.
        panel: of `--help`; without one it is among those that are shown first.
        metavar: what stands for its value.
        min: smallest number.
    """
    return Annotated[kind, typer.Option(*names, help=help, rich_help_panel=panel, metavar=metavar, min=min)]


def option_group(parameter: str, options: Callable[[], Mapping[str, Option]]) -> Callable[[Command], Command]:
    """Give a command a group of options in place of one of its parameters, where that parameter stands.

    Args:
        parameter: of the command; it receives option -> value.
        options: gives the options, by parameter name; called when the command is declared.
    """

    def add_to(command: Command) -> Command:
        offered = options()

        @wraps(command)
        def parsed(**given: Any) -> Any:
            values = {name: given.pop(name) for name in offered}
            return command(**given, **{parameter: values})

        parameters: list[Parameter] = []
        for own in signature(command, eval_str=True).parameters.values():
            if own.name == parameter:
                for name, (annotation, default) in offered.items():
                    parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation))
            else:
                parameters.append(own.replace(kind=Parameter.KEYWORD_ONLY))
        parsed.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        parsed.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return parsed

    return add_to
