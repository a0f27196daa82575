"""A model folder is closed: no file in it may be a link to one elsewhere, which would be read, or copied, for it."""

from __future__ import annotations

import os
from pathlib import Path

from ..core.errors import InputError

READ_FOLDERS = ("additional_chat_templates",)  # what transformers looks for below a model folder


def check_links(folder: Path) -> None:
    """Refuse links that lead out of a model folder. Those of the hub's cache, to the blobs beside it, are its files.

    Args:
        folder: itself a link or not.

    Raises:
        InputError: a file in it is a link to somewhere else; names it.
    """
    here = Path(os.path.realpath(folder))
    inside = [here, here.parent.parent / "blobs"] if here.parent.name == "snapshots" else [here]
    below = [folder / name for name in READ_FOLDERS if (folder / name).is_dir()]
    for entry in [*below, *(entry for place in (folder, *below) for entry in place.iterdir() if not entry.is_dir())]:
        target = Path(os.path.realpath(entry))
        if entry.is_symlink() and not any(target.is_relative_to(place) for place in inside):
            raise InputError(f"{entry}: is a link that leads out of its folder; put the file itself there")
