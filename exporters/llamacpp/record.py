"""What is known of a build, in a file beside it: how it was built, why so, and what its proof gave."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .ladder import Built
from .processor import Processor

NAME = "proof.json"


@dataclass(frozen=True)
class Record:
    """How one build came about.

    Attributes:
        rung: name of the way it was built, see `ladder.py`.
        left_out, because: what it does without, and how builds that had it failed; empty for the best build.
        options: CMake's, besides those that all builds share.
        compiler: language -> compiler's name and version.
        processor, features: that it was built for and proven on.
        proof: see `Proof.to_json`.
    """

    rung: str
    left_out: str
    because: str
    options: tuple[str, ...]
    compiler: dict[str, str]
    processor: str
    features: tuple[str, ...]
    proof: dict[str, Any]

    def lines(self) -> Iterator[str]:
        """For people."""
        compilers = ", ".join(dict.fromkeys(self.compiler.values()))
        yield (
            f"built {self.rung} by {compilers or 'an unknown compiler'} for {self.processor}; "
            f"proven by {self.proof['runs']} prompts in {self.proof['seconds']} s"
        )
        if self.left_out:
            yield f"built without {self.left_out}, because of {self.because}"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready data."""
        return asdict(self)


def write_record(built: Built, processor: Processor, compiler: dict[str, str]) -> Record:
    """Put a proven build's record into it."""
    record = Record(
        built.rung.name,
        built.rung.left_out,
        built.because,
        built.rung.options,
        compiler,
        processor.name,
        tuple(sorted(processor.features)),
        built.proof.to_json(),
    )
    (built.site / NAME).write_text(json.dumps(record.to_json(), indent=1) + "\n", encoding="utf-8")
    return record


def read_record(folder: Path) -> Record | None:
    """A build's record; None where there is none that can be read."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        found["options"], found["features"] = tuple(found["options"]), tuple(found["features"])
        return Record(**found)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def compilers_of(tree: Path) -> dict[str, str]:
    """Language -> compiler and version, from a CMake build folder."""
    found = {}
    for language in ("C", "CXX"):
        for file in tree.rglob(f"CMake{language}Compiler.cmake"):
            values = dict(
                re.findall(r'set\((CMAKE_\w+) "([^"]*)"\)', file.read_text(encoding="utf-8", errors="replace"))
            )
            name, version = (values.get(f"CMAKE_{language}_COMPILER_{part}", "") for part in ("ID", "VERSION"))
            found[language] = f"{name} {version}".strip()
    return found


def other_processors(cache: Path, version: str, processor: Processor) -> str:
    """Where the cache holds builds of a version for other processors only: a line that says which; empty otherwise."""
    records = [record for folder in sorted(cache.glob(f"{version}-*")) if (record := read_record(folder))]
    own = set(processor.features)
    if not records or any(set(record.features) == own and record.processor == processor.name for record in records):
        return ""
    last = records[-1]
    lacking = sorted(set(last.features) - own)
    lacks = f"; this one lacks {', '.join(lacking[:8])}{', ...' if len(lacking) > 8 else ''}" if lacking else ""
    return f"the build in the cache is for another processor ({last.processor}){lacks}: this one gets its own"
