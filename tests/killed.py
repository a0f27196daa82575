"""A command of `lowrank-export` that dies at the first file it writes at which none has died yet.

    killed.py KNOWN COMMAND ...

KNOWN is JSON, [[name of a file, "before" or "after"], ...]: died at it, half of the file written, or right after it had
got its name. The moment is told on stdout in the same form. See test_kill.py.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from lowrank_export.cli import main
from lowrank_export.converter.storage import files

known, move = json.loads(sys.argv.pop(1)), files._move_into_place


def move_or_die(beside: Path, path: Path) -> None:
    """What gives every file its name."""
    for when in ("before", "after"):
        if when == "after":
            move(beside, path)
        if [path.name, when] not in known:
            if when == "before" and beside.is_file():
                os.truncate(beside, beside.stat().st_size // 2)
            print(json.dumps([path.name, when]), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)


files._move_into_place = move_or_die
main()
