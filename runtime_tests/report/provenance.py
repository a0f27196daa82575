"""Where a model comes from, as its folder tells: recipe, calibration, source, licence, ranks; and hashes of weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ...converter.checkpoint.layouts import C_SUFFIX, P_SUFFIX, U_SUFFIX, V_SUFFIX
from ...converter.checkpoint.reader import CheckpointReader, read_json
from ...converter.core.errors import InputError
from ...converter.core.recipe import RECIPE_FILE, Recipe
from ...converter.model.gguf_parts import gguf_parts
from ...converter.model.places import is_gguf
from ...converter.storage.documents import parse_yaml, read_text_file, read_yaml_file, shown
from .report import LinearRank

MAX_CARD_BYTES = 2**22
WEIGHTS = ("*.safetensors", "model.onnx", "model.onnx.data")
BLOCKS = ".layers."


def model_provenance(folder: Path) -> dict[str, Any]:
    """Recipe, calibration record, base model and licence of a checkpoint, as far as it holds them."""
    found: dict[str, Any] = {}
    if recipe := _recipe_fields(folder):
        found["recipe"] = recipe
    if (folder / "calibration.json").is_file():
        found["calibration"] = read_json(folder / "calibration.json")
    card = card_fields(folder / "README.md")
    found |= {key: _word(card[key]) for key in ("license", "base_model") if card.get(key)}
    return found


def _recipe_fields(folder: Path) -> dict[str, Any]:
    """The recipe's values as reports hold them; others than a recipe's are left out."""
    if not (folder / RECIPE_FILE).is_file():
        return {}
    found = read_yaml_file(folder / RECIPE_FILE)
    if not isinstance(found, dict):
        raise InputError(f"{folder / RECIPE_FILE}: expected a YAML mapping of recipe keys")
    return {key: _plain(value) for key, value in found.items() if key in Recipe.model_fields}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_word(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float) else _word(value)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)


def card_fields(path: Path) -> dict[str, Any]:
    """The front matter of a model card; empty where there is none that can be read."""
    try:
        text = read_text_file(path, MAX_CARD_BYTES)
    except InputError:
        return {}
    begin, _, rest = text.partition("---\n")
    if begin.strip() or "\n---" not in rest:
        return {}
    try:
        fields = parse_yaml(rest.partition("\n---")[0])
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def weights_sha256(path: Path) -> str:
    """SHA-256 of a file; of parts or a folder, over name and content of every file of weights, by name."""
    digest = hashlib.sha256()
    files = _weight_files(path)
    if files == [path]:
        _add(digest, path)
        return digest.hexdigest()
    for file in files:
        digest.update(file.name.encode() + b"\0")
        _add(digest, file)
    return digest.hexdigest()


def _weight_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted({file for pattern in WEIGHTS for file in path.glob(pattern)})
    try:
        return list(gguf_parts(path)) if is_gguf(path) else [path]
    except InputError:  # damaged: a hash tells it from others all the same
        return [path]


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
