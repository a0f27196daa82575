"""The command line: the list of verbs, the error boundary, and all that is printed. No logic lives here.

Each verb, with its options and its one call, stands beside its stage in a `commands.py`.

Exit codes: 0 ok, 1 bug, 2 usage, 3 bad input or unsupported model, 4 a gate failed, 5 out of memory or disk (or a tool
the machine lacks, or another process of the job is lost), 130 interrupted (the same command goes on).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import typer

from .converter import commands as converting
from .converter.core.errors import AlreadyReportedError, LowRankError
from .converter.core.help_page import SHELL, Command, Group
from .converter.core.outcome import Outcome
from .converter.storage.printable import printable
from .exporters import commands as exporting
from .runtime_tests import commands as testing

EXIT_CODES = (
    "Exit codes: 0 ok, 1 bug, 2 usage, 3 bad input or unsupported model, 4 a gate failed, "
    "5 out of memory or disk, a missing tool or a lost process, 130 interrupted (the same command goes on)."
)
DIVIDED = ("compress", "statistics")
"""Commands whose work torchrun divides among processes."""
LOG_WIDTH = 120  # columns of tables written to a file or pipe
app = typer.Typer(
    cls=Group,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    help="Compress a language model with AdaSVD, export it to GGUF and ONNX, and prove that it still works.",
    epilog=EXIT_CODES,
)
runtime_app = typer.Typer(cls=Group, help="The patched llama.cpp that runs factored GGUF files.", no_args_is_help=True)
app.add_typer(runtime_app, name="runtime")
Verb = Callable[..., Outcome | None]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel=SHELL)]
Version = Annotated[bool, typer.Option("--version", help="Print the version.", rich_help_panel=SHELL)]


def _job(context: typer.Context, version: bool = False, **given: Any) -> None:
    """Compress, export and validate in one go. Sub-commands do the single steps."""
    if context.invoked_subcommand not in DIVIDED:
        with _one_line_errors():
            from .converter.distributed.joining import require_single_process

            require_single_process(context.invoked_subcommand or "the whole job")
    if context.invoked_subcommand is not None:
        return
    if version:
        from .converter.core.version import __version__

        typer.echo(__version__)
        return
    _printed(testing.run)(**given)


def _printed(verb: Verb, *, passive: bool = False) -> Callable[..., None]:
    """A verb that prints what it gives back, with --json beside its own options.

    Args:
        verb: of a stage.
        passive: it runs PyTorch alone, see `_wait_passively`.
    """

    @wraps(verb)
    def called(as_json: bool = False, **given: Any) -> None:
        if passive:
            _wait_passively()
        with _one_line_errors():
            outcome = verb(**given)
            if outcome is not None:
                _print(outcome, as_json)

    _declare(called, [*_parameters(verb), _option("as_json", Json)])
    return called


def _parameters(verb: Callable[..., Any]) -> list[Parameter]:
    found = signature(verb, eval_str=True).parameters.values()
    return [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in found]


def _option(name: str, annotation: Any, default: Any = False) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _declare(command: Callable[..., None], parameters: list[Parameter]) -> None:
    """Say to Typer what the parameters of a command are."""
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


_declare(
    _job,
    [
        Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context),
        *_parameters(testing.run),
        _option("as_json", Json),
        _option("version", Version),
    ],
)
app.callback(invoke_without_command=True)(_job)
for _verb, _passive in (
    (exporting.compress, True),
    (converting.statistics, True),
    (exporting.plan, True),
    (testing.compare, True),
    (testing.sweep, False),
    (testing.recommend, False),
    (testing.trim, False),
    (exporting.export, True),
    (exporting.imatrix, True),
    (testing.validate, False),
    (testing.inspect, False),
    (testing.doctor, False),
):
    app.command(cls=Command)(_printed(_verb, passive=_passive))
for _verb in (exporting.runtime_build, exporting.runtime_status, exporting.runtime_path):
    runtime_app.command(_verb.__name__.removeprefix("runtime_"), cls=Command)(_printed(_verb))


def _print(outcome: Outcome, as_json: bool) -> None:
    """The table and the lines on stderr, or with --json exactly one document on stdout; then the exit code."""
    if outcome.text is not None:
        typer.echo(outcome.text)
    elif as_json:
        document = dict(outcome.document)
        if outcome.with_cost:
            from .runtime_tests.environment import process_cost

            document["process"] = process_cost()
        text = json.dumps(document, indent=2, ensure_ascii=False)
        typer.echo(text.encode("utf-8", "backslashreplace").decode("utf-8"))  # half a surrogate pair is not printable
    elif outcome.table is not None:
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
        if not console.is_terminal:
            console = Console(stderr=True, highlight=False, width=LOG_WIDTH)
        console.print(outcome.table)
    for line in (*outcome.lines, *(outcome.said_by_table if as_json else ())):
        _tell(line)
    if outcome.error is not None:
        raise outcome.error
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def _tell(line: str) -> None:
    typer.echo(printable(line), err=True)


def _wait_passively() -> None:
    """Let idle OpenMP threads sleep instead of spin: fewer CPU seconds, and no standstill beside other work.

    Only for commands that run PyTorch alone, and before it is imported: llama.cpp is faster with spinning threads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn every error into one line on stderr and the documented exit code."""
    try:
        yield
    except typer.Exit:
        raise
    except AlreadyReportedError as error:
        raise typer.Exit(error.exit_code) from None
    except LowRankError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted; nothing half-written was left, and the same command goes on", 130)
    except MemoryError:
        _fail("out of memory; use fewer or shorter --windows, or a smaller model", 5)
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}", 5)
    except Exception as error:
        if any(said in str(error).lower() for said in ("out of memory", "can't allocate memory", "alloc_failed")):
            _fail("out of memory; use fewer or shorter --windows, --device cpu, or a smaller model", 5)
        if os.environ.get("LOWRANK_DEBUG"):
            raise
        _fail(f"bug: {type(error).__name__}: {error} (set LOWRANK_DEBUG=1 for the traceback, and report it)", 1)


def _fail(message: str, code: int) -> None:
    _tell(f"error: {message}")
    raise typer.Exit(code)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Console entry point. SIGTERM is treated as Ctrl-C, so that nothing half-written is left."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app(prog_name="lowrank-export")
    except KeyboardInterrupt:
        _tell("error: interrupted")
        sys.exit(130)
