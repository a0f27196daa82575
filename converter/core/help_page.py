"""How `--help` shows options: what people type in place of Python's types, and completion in a panel of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from typer import Context

METAVARS = {"<str>": "TEXT", "<list[str]>": "TEXT", "<path>": "PATH", "<file>": "PATH", "<directory>": "PATH"}
METAVARS |= {"<int>": "N", "<list[int]>": "N", "<int range>": "N", "<float>": "NUMBER", "<float range>": "NUMBER"}
METAVARS |= {"<bool>": "", "<list[path]>": "PATH"}
SHELL, COMPLETION = "Shell", ("install_completion", "show_completion")


def readable(params: list[Any], context: Context) -> list[Any]:
    """The parameters of a command, with words for their values where they have none of their own."""
    for param in params:
        if param.name in COMPLETION:
            param.rich_help_panel = SHELL
        if param.param_type_name == "option" and param.metavar is None:
            param.metavar = METAVARS.get(param.display_type(context))
    return params


class Command(TyperCommand):
    """A command whose help is readable."""

    def get_params(self, ctx: Any) -> list[Any]:
        """See `readable`."""
        return readable(super().get_params(ctx), ctx)


class Group(TyperGroup):
    """The whole of them."""

    def get_params(self, ctx: Any) -> list[Any]:
        """See `readable`."""
        return readable(super().get_params(ctx), ctx)
