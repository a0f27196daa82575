"""The processes of a proof: one that makes models and their logits, and those that run them and may be lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Timer

from ...converter.core.errors import ResourceError
from ...converter.core.progress import Advance
from ...converter.core.signals import signal_words
from .proof_child import JOB, Run
from .proof_models import CONTEXT, prompt

MODELS, CHILD = f"{__package__}.proof_logits", f"{__package__}.proof_child"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
SECONDS = 900.0  # wall; a process that hangs is ended
Words = tuple[str, str]
"""What went wrong, and its details or nothing."""


def written_models(folder: Path, names: Sequence[str]) -> list[Path]:
    """Models and their logits, made by numpy in a process of its own; see `proof_logits.py`.

    Raises:
        ResourceError: numpy cannot be relied on here, or there is no room.
    """
    command = [sys.executable, "-P", "-m", MODELS, str(folder), *names]
    environment = {**os.environ, **ONE_THREAD}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603
    if done.returncode != 0:
        how = signal_words(-done.returncode) if done.returncode < 0 else ""
        said = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
        raise ResourceError(
            f"llama.cpp runtime: its proof could not be made: {how or (said or ['no reason given'])[-1]}"
        )
    return [folder / f"{name}.gguf" for name in names]


def lost_runs(site: Path, runs: Sequence[Run], folder: Path, advance: Advance) -> Iterator[tuple[Run, Words]]:
    """Run in as many processes as it takes; yields the runs that a process was lost over, and how.

    After such a run the other runs of its model are left out. Logits of the rest lie in `folder`, see `proof_child.py`.

    Args:
        site: folder that holds the importable `llama_cpp`.
        runs: those of one model together.
        folder: to work in.
        advance: receives every run.

    Raises:
        ResourceError: no memory, no room, or a module or library that the build needs is missing: what no other build
            would change.
    """
    waiting = list(runs)
    while waiting:
        started, how = _child(site, waiting, folder, advance)
        if how is None:
            return
        if not started:  # it is lost while it loads: no model would fare better
            yield waiting[0], how
            return
        lost = waiting[started - 1]
        yield lost, how
        rest = [run for run in waiting[started:] if run.model != lost.model]
        advance(len(waiting) - started - len(rest))
        waiting = rest


def _child(site: Path, runs: Sequence[Run], folder: Path, advance: Advance) -> tuple[int, Words | None]:
    """One process. Returns how many runs it started, and how it was lost, None if it was not."""
    job = {"site": str(site), "runs": [asdict(run) for run in runs], "tokens": prompt(CONTEXT).tolist()}
    (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # this is no race, and other work may be running
    environment.pop("LLAMA_CPP_LIB_PATH", None)  # it is this build's library that is to be proven
    said, started, late = folder / "stderr", 0, False
    with said.open("w", encoding="utf-8") as errors:
        child = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", CHILD, str(folder)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            process_group=0,  # an interrupt on the terminal is this process's, which ends the child
        )

        def end() -> None:
            nonlocal late
            late = True
            child.kill()

        timer = Timer(SECONDS, end)
        timer.start()
        try:
            for _ in child.stdout or ():
                started += 1
                advance(1)
        except BaseException:
            child.kill()
            raise
        finally:
            timer.cancel()
            code = child.wait()
    if late:
        return started, (f"no end within {SECONDS:.0f} s", "")
    lines = said.read_text(encoding="utf-8", errors="replace").splitlines()
    return started, _how(code, [line.strip()[:200] for line in lines if line.strip()], started, len(runs))


def _how(code: int, said: list[str], started: int, runs: int) -> Words | None:
    """How a process was lost, from its exit code, what it said, and how many runs it started; None if it was not."""
    last = said[-1] if said else "no reason given"
    if code == -signal.SIGKILL:
        raise ResourceError("llama.cpp runtime: its proof was killed, most likely for want of memory")
    if code < 0:
        return signal_words(-code), next((line for line in said if "assert" in line.lower()), "")
    if code > 0 and not started:
        raise ResourceError(f"llama.cpp runtime: its library does not load: {last}")
    if code == ResourceError.exit_code:
        raise ResourceError(f"llama.cpp runtime: its proof could not be run: {last}")
    if code > 0:
        return "an error", last
    return None if started == runs else ("an end before its time", last)
