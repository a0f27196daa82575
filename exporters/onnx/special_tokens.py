"""The special tokens in genai_config.json: those that the checkpoint's files state, whatever a builder assumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...converter.model.tokens import Tokens


def ids_for_genai(tokens: Tokens) -> dict[str, Any]:
    """What genai_config.json says of special tokens.

    GenAI needs an id for each role. Where the files state none to begin with or to fill up, the first end stands for
    it, as in GenAI's own builder; where none ends a text, there is none at which to stop.
    """
    first = next(iter(tokens.ends), None)
    said = {
        "bos_token_id": tokens.begin if tokens.begin is not None else first,
        "eos_token_id": tokens.ends[0] if len(tokens.ends) == 1 else list(tokens.ends),
        "pad_token_id": tokens.pad if tokens.pad is not None else first,
    }
    return {key: value for key, value in said.items() if value is not None}


def state_tokens(folder: Path, tokens: Tokens) -> None:
    """Write the special tokens into a folder's genai_config.json."""
    path = folder / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    model = config["model"]
    said = ids_for_genai(tokens)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        model.pop(key, None) if key not in said else model.__setitem__(key, said[key])
    path.write_text(json.dumps(config, indent=4), encoding="utf-8")
