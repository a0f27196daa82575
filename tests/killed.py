"""A command, left alone and then killed at every file it writes and started anew, until it ends by itself.

    python killed.py WHOLE CUT COMMAND ... --out

Each start is a process of its own: a fork of this one, which has imported everything and computed nothing. The first
makes WHOLE. One that makes CUT goes on to the first file at which none has died yet and dies there, half of the file
written; the next one right after that file has got its name; and so on. A line of JSON on stdout for each start: the
file and "before" or "after", or the exit code.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from transformers import LlamaForCausalLM  # noqa: F401  imported once, not in every start

from lowrank_export.cli import main
from lowrank_export.converter import pipeline  # noqa: F401
from lowrank_export.converter.storage import files

Moment = tuple[str, str]


def die_at_the_first_unknown(known: set[Moment], report: int) -> None:
    """Have this process die at a moment that is not known, which it tells first."""
    real = files._move_into_place

    def move_or_die(beside: Path, path: Path) -> None:
        for when in ("before", "after"):
            if when == "after":
                real(beside, path)
            if (path.name, when) not in known:
                if when == "before" and beside.is_file():
                    os.truncate(beside, beside.stat().st_size // 2)
                os.write(report, json.dumps([path.name, when]).encode())
                os.kill(os.getpid(), signal.SIGKILL)

    files._move_into_place = move_or_die


def start(command: list[str], known: set[Moment] | None) -> Moment | int:
    """Run a command, which dies at a moment that is not known (None: never); that moment, or its exit code."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        if known is not None:
            die_at_the_first_unknown(known, writing)
        sys.argv[1:], code = command, 1
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert (code == -signal.SIGKILL) == bool(told), (code, told)
    if not told:
        return code
    name, when = json.loads(told)
    return name, when


if __name__ == "__main__":
    whole, cut, *given = sys.argv[1:]
    print(start([*given, whole], None), flush=True)
    moments: set[Moment] = set()
    while not isinstance(found := start([*given, cut], moments), int):
        moments.add(found)
        print(json.dumps(found), flush=True)
    print(found)
