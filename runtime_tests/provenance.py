"""Where a model comes from, as its folder tells: recipe, calibration, source, licence, ranks; and hashes of weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from ..converter.checkpoint import CheckpointReader, read_json
from ..converter.layouts import C_SUFFIX, P_SUFFIX, U_SUFFIX, V_SUFFIX
from .report import LinearRank

WEIGHTS = ("*.safetensors", "model.onnx", "model.onnx.data")
BLOCKS = ".layers."


def model_provenance(folder: Path) -> dict[str, Any]:
    """Recipe, calibration record, base model and licence of a checkpoint, as far as it holds them."""
    found: dict[str, Any] = {}
    if (text := CheckpointReader(folder).recipe_text) and isinstance(recipe := yaml.safe_load(text), dict):
        found["recipe"] = recipe
    if (folder / "calibration.json").is_file():
        found["calibration"] = read_json(folder / "calibration.json")
    card = card_fields(folder / "README.md")
    found |= {key: str(card[key]) for key in ("license", "base_model") if card.get(key)}
    return found


def card_fields(path: Path) -> dict[str, Any]:
    """The front matter of a model card; empty where there is none that can be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    begin, _, rest = text.partition("---\n")
    if begin.strip() or "\n---" not in rest:
        return {}
    try:
        fields = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:
        return {}
    return fields if isinstance(fields, dict) else {}


def weights_sha256(path: Path) -> str:
    """SHA-256 of a file; of a folder, over name and content of every file of weights, by name."""
    digest = hashlib.sha256()
    if path.is_file():
        _add(digest, path)
        return digest.hexdigest()
    for file in sorted({file for pattern in WEIGHTS for file in path.glob(pattern)}):
        digest.update(file.name.encode() + b"\0")
        _add(digest, file)
    return digest.hexdigest()


def factored_ranks(folder: Path) -> tuple[LinearRank, ...]:
    """Rank and retention of every factored linear of a checkpoint, by block."""
    reader = CheckpointReader(folder)
    found = []
    for name, rank in reader.ranks.items():
        _, _, place = name.partition(BLOCKS)
        block, _, linear = place.partition(".")
        if not block.isdigit():
            continue
        if reader.layout == "pivot":
            (_, columns), (others, _) = reader.shape(name + P_SUFFIX), reader.shape(name + C_SUFFIX)
            rows, kept = rank + others, rank * (columns + others)
        else:
            rows, columns = reader.shape(name + U_SUFFIX)[0], reader.shape(name + V_SUFFIX)[1]
            kept = rank * (rows + columns)
        found.append(LinearRank(int(block), linear.rpartition(".")[2], int(rank), kept / (rows * columns)))
    return tuple(sorted(found, key=lambda item: item.block))


def _add(digest: Any, file: Path) -> None:
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
