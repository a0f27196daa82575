"""A process of a test's own that starts in milliseconds: a fork of one that has imported everything, computed nothing.

`conftest.forked` starts it. `given` holds "argv" (of a script, or of `python -m lowrank_export` where the first word is
"lowrank_export"), "environ" (all of it) and "stderr", "stdout" (files, appended to).
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

given: dict[str, Any] = globals()["given"]  # set by who runs this file

for stream, file in ((1, given["stdout"]), (2, given["stderr"])):
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, stream)
    os.close(descriptor)
# a shell's background job ignores SIGINT and passes that on
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.clear()
os.environ.update(given["environ"])
os.chdir(given["cwd"])
sys.argv = given["argv"]
if sys.argv[0] == "lowrank_export":
    runpy.run_module("lowrank_export", run_name="__main__", alter_sys=True)
else:
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))  # as the interpreter does for a script
    runpy.run_path(sys.argv[0], run_name="__main__")
