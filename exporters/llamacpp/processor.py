"""The processor this machine has: what a build for it may use, and what tells it from another."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
FEATURES = ("flags", "features")  # x86-64, arm64
# What compilers look at for `native`, and nothing that differs between two starts of one machine.
IDENTITY = (*FEATURES, "model name", "model", "cpu family", "cpu implementer", "cpu variant", "cpu part")


@dataclass(frozen=True)
class Processor:
    """One kind of processor.

    Attributes:
        name: for people.
        machine: architecture, as `platform.machine` gives it.
        features: instruction sets and the like, as Linux names them; empty where there is no /proc.
        identity: what differs for another kind of processor.
    """

    name: str
    machine: str
    features: frozenset[str]
    identity: str


def this_processor() -> Processor:
    """The processor that this process runs on."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        name = platform.processor() or "unknown"
        return Processor(name, platform.machine(), frozenset(), name)
    return parse_cpuinfo(text, platform.machine())


def parse_cpuinfo(text: str, machine: str) -> Processor:
    """A processor from Linux's description; cores that differ are taken together."""
    pairs = [
        (key.strip().lower(), value.strip()) for key, _, value in (line.partition(":") for line in text.splitlines())
    ]
    kept = sorted({f"{key}: {value}" for key, value in pairs if key in IDENTITY})
    named = next((value for key, value in pairs if key == "model name"), "")
    part = "; ".join(line for line in kept if line.startswith(("cpu implementer", "cpu part")))
    features = {word for key, value in pairs if key in FEATURES for word in value.split()}
    return Processor(named or part or platform.processor() or "unknown", machine, frozenset(features), "\n".join(kept))
