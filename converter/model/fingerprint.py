"""Which model a folder holds, as a hash."""

from __future__ import annotations

import hashlib
from pathlib import Path


def model_sha256(folder: Path) -> str:
    """SHA-256 over names and contents of config and weight files, in hexadecimal. Reads all of them."""
    digest = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
