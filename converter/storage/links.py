"""A model folder is closed: no file in it may be a link to one elsewhere, which would be read, or copied, for it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..core.errors import InputError

TEMPLATES = "additional_chat_templates"
READ_FOLDERS = (TEMPLATES,)  # what transformers looks for below a model folder
FOLLOW = "LOWRANK_FOLLOW_LINKS"
"""Set to 1, the links of every model folder are its owner's and meant."""
_BLOB = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""How the hub's cache names what it fetched: by SHA-1 or SHA-256."""


def check_links(folder: Path) -> None:
    """Refuse links that lead out of a model folder, unless its owner said that they are meant (`FOLLOW`).

    Those of the hub's cache, to the blobs beside its snapshots, are its files. Where the folder of blobs is itself a
    link, to another disk perhaps, they are read if they are named as the cache names its blobs: a folder from elsewhere
    that brings such a link reaches nothing else through it.

    Args:
        folder: itself a link or not.

    Raises:
        InputError: a file in it is a link to somewhere else; names it.
    """
    if os.environ.get(FOLLOW) == "1":
        return
    here = Path(os.path.realpath(folder))
    blobs = here.parent.parent / "blobs" if here.parent.name == "snapshots" else None
    below = [folder / name for name in READ_FOLDERS if (folder / name).is_dir()]
    for entry in [*below, *(entry for place in (folder, *below) for entry in place.iterdir() if not entry.is_dir())]:
        if not entry.is_symlink():
            continue
        target = Path(os.path.realpath(entry))
        if not target.is_relative_to(here) and not (blobs is not None and _is_blob(target, blobs)):
            raise InputError(
                f"{entry}: is a link that leads out of its folder; put the file itself there, or set {FOLLOW}=1 if the "
                "links are yours and meant"
            )


def _is_blob(target: Path, blobs: Path) -> bool:
    """Whether a file lies in a cache's folder of blobs."""
    if not blobs.is_symlink():
        return target.is_relative_to(blobs)
    return target.parent == Path(os.path.realpath(blobs)) and _BLOB.fullmatch(target.name) is not None
