"""A folder says what it was made from, so that nothing of another job is taken for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import InputError, UsageError
from .documents import MAX_JSON_BYTES, parse_json, read_text_file, shown
from .files import replacing

SAID = 4  # differences, at most


def claim(path: Path, identity: Mapping[str, Any], *, holds: str, otherwise: str) -> None:
    """Write an identity down, or check that it is the one that was written down before.

    Args:
        path: of the JSON file.
        identity: JSON-ready; whatever changes what the folder holds.
        holds: what the folder holds, for the error.
        otherwise: what to do then, for the error.

    Raises:
        UsageError: the identity written down is another one; names what differs.
        ResourceError: the folder is not writable.
    """
    if not path.is_file():
        with replacing(path, force=False, folder=False) as beside:
            beside.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
        return
    try:
        found = parse_json(read_text_file(path, MAX_JSON_BYTES))
        different = [key for key in {**identity, **found} if found.get(key) != identity.get(key)]
    except (ValueError, TypeError, AttributeError, InputError):
        raise UsageError(f"{path}: damaged; {otherwise}") from None
    if different:
        others = (f"{key} ({shown(found.get(key))}, here {shown(identity.get(key))})" for key in different[:SAID])
        raise UsageError(f"{path.parent}: holds {holds} made with another {', another '.join(others)}; {otherwise}")
