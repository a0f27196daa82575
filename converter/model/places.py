"""The ways in which people keep a model: a folder, a cache of the hub around it, a GGUF file, in a folder, in parts."""

from __future__ import annotations

import re
from pathlib import Path

from ..core.errors import InputError
from ..storage.gguf_header import MAGIC

SNAPSHOTS, REFS, REPOSITORY = "snapshots", "refs", "models--"
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)
"""How llama.cpp names the parts of a file, from 00001 on."""
SHOWN = 5


def is_gguf(path: Path) -> bool:
    """Whether a file is GGUF, whatever its name."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def is_later_part(path: Path) -> bool:
    """Whether a file's name says that it is a part of a GGUF file, and not the first."""
    found = _PART.fullmatch(path.name)
    return found is not None and int(found["number"]) > 1


def model_place(path: Path) -> Path:
    """What a folder stands for.

    Args:
        path: a folder.

    Returns:
        The folder itself if it has a config.json; the snapshot of a cache of the hub; the GGUF file, or its first part,
        that is the only one in the folder; else the folder.

    Raises:
        InputError: there are several; names them.
    """
    if (path / "config.json").exists():
        return path
    if (path / SNAPSHOTS).is_dir():
        return _snapshot(path)
    if path.name == SNAPSHOTS and path.parent.name.startswith(REPOSITORY):
        return _snapshot(path.parent)
    if cached := sorted(entry for entry in path.glob(f"{REPOSITORY}*") if entry.is_dir()):
        raise InputError(f"{path}: is a cache of the hub; give one of {_some(cached)}")
    firsts = [entry for entry in sorted(path.iterdir()) if is_gguf(entry) and not is_later_part(entry)]
    if len(firsts) > 1:
        raise InputError(f"{path}: holds several GGUF files; give one of {_some(firsts)}")
    return firsts[0] if firsts else path


def _snapshot(repository: Path) -> Path:
    """The snapshot that the cache calls `main`, or the only one.

    Raises:
        InputError: none, or several.
    """
    reference = repository / REFS / "main"
    if reference.is_file():
        name = reference.read_text(encoding="utf-8", errors="replace").strip()
        if re.fullmatch(r"[0-9a-f]{4,64}", name) and (repository / SNAPSHOTS / name).is_dir():
            return repository / SNAPSHOTS / name
    found = sorted(entry for entry in (repository / SNAPSHOTS).iterdir() if entry.is_dir())
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"{repository}: is a cache of the hub without a snapshot; fetch the model again")
    raise InputError(f"{repository}: is a cache of the hub with several snapshots; give one of {_some(found)}")


def parts_beside(path: Path, number: int, count: int) -> tuple[Path, ...]:
    """All parts of a GGUF file, in order.

    Args:
        path: one of them.
        number: which it is, from 1 on, as its header says.
        count: how many there are, as its header says.

    Raises:
        InputError: its name does not say so, or another part is missing.
    """
    what = f"{path}: is part {number} of {count}"
    found = _PART.fullmatch(path.name)
    if found is None or (int(found["number"]), int(found["count"])) != (number, count):
        raise InputError(f"{what}, and its name does not end with -{number:05}-of-{count:05}.gguf; name it so")
    parts = []
    for index in range(1, count + 1):
        part = path.with_name(f"{found['stem']}-{index:05}-of-{count:05}{found['suffix']}")
        if not part.is_file():
            raise InputError(f"{what}, and {part.name} is not beside it")
        parts.append(part)
    return tuple(parts)


def _some(paths: list[Path]) -> str:
    named = ", ".join(map(str, paths[:SHOWN]))
    return named + (f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else "")
