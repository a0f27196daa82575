"""Fuzz every reader for some seconds each and print how many inputs it met and what it did not survive.

    python benchmarks/fuzz.py --seconds 30                 # every reader
    python benchmarks/fuzz.py --seconds 60 --only gguf     # one of them
    python benchmarks/fuzz.py --only llama.cpp             # the runtimes too, a process per input

Inputs are sound files, changed at random: bytes, numbers at places that look like lengths, and in JSON and YAML whole
values. A reader may read them or raise a `LowRankError`; anything else is a finding, as is an input that costs more
than 256 MB of memory or 20 seconds of processor time. Exit code 1 if there is one. The same seed gives the same inputs.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fuzz_mutations import mutate
from fuzz_readers import Target, targets

ROOM, PATIENCE = 256 * 2**20, 20.0


@dataclass
class Found:
    """What came of fuzzing one reader.

    Attributes:
        inputs, refused: how many it met, and how many of them it refused in a line.
        findings: the others that it did not read, each as "what: input in hexadecimal".
    """

    inputs: int = 0
    refused: int = 0
    findings: tuple[str, ...] = ()


def meet(target: Target, data: bytes, found: Found) -> None:
    """Give a reader one input."""
    from lowrank_export.converter.core.errors import LowRankError

    before, began, what = _peak(), time.process_time(), ""
    try:
        target.read(data)
    except LowRankError as error:
        found.refused += 1
        what = "more than one line" if "\n" in str(error).strip() else ""
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        what = f"{type(error).__name__}: {str(error)[:200]}"
    if _peak() - before > ROOM:
        what = f"{(_peak() - before) / 2**20:.0f} MB of memory"
    if time.process_time() - began > PATIENCE:
        what = f"{time.process_time() - began:.0f} s"
    found.inputs += 1
    if what:
        found.findings = (*found.findings, f"{what}: {data[:400].hex()}")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(target: Target, seconds: float, seed: int) -> Found:
    """Changed inputs for that many seconds of processor time, children included."""
    chance, found = random.Random(f"{target.name} {seed}"), Found()  # noqa: S311
    for data in target.seeds:
        meet(target, data, found)
    found.inputs = 0
    begin = _used()
    while _used() - begin < seconds and len(found.findings) < 20:
        meet(target, mutate(chance.choice(target.seeds), target.kind, chance), found)
    return found


def _used() -> float:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, fuzz, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="of processor time, per reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="a reader's name; repeatable")
    asked = parser.parse_args(arguments)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="lowrank-fuzz-") as scratch:
        known = targets(Path(scratch))
        names = [target.name for target in known]
        if unknown := set(asked.only or ()) - set(names):
            parser.error(f"no such reader: {', '.join(unknown)}; known: {', '.join(names)}")
        print(f"{'reader':20} {'inputs':>9} {'refused':>9} {'findings':>9}")
        for target in known:
            if target.name in asked.only if asked.only else not target.slow:
                found = fuzz(target, asked.seconds, asked.seed)
                bad += len(found.findings)
                print(f"{target.name:20} {found.inputs:9,} {found.refused:9,} {len(found.findings):9,}", flush=True)
                for line in found.findings:
                    print(f"    {line}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
