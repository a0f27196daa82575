"""The factored checkpoint on disk: a Hugging Face directory whose compressed linears are stored as factors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

U_SUFFIX = ".lowrank_u.weight"
V_SUFFIX = ".lowrank_v.weight"
SAFETENSORS_INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000


class CheckpointReader:
    """Reads a checkpoint directory, factored or dense, tensor by tensor.

    Raises:
        InputError: the directory is not a checkpoint, a shard is damaged, or a factor disagrees with its rank.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise InputError(f"{path}: no such directory; give the folder of a Hugging Face checkpoint")
        self.config: dict[str, Any] = read_json(self.path / "config.json")
        lowrank = self.config.get("quantization_config") or {}
        self.lowrank: dict[str, Any] = lowrank if lowrank.get("quant_method") == "lowrank" else {}
        if lowrank and not self.lowrank:
            raise InputError(
                f"{path}: already quantised ({lowrank.get('quant_method')}); start from the unquantised checkpoint"
            )
        self.ranks: dict[str, int] = dict(self.lowrank.get("ranks", {}))
        self._shards = {name: shard for shard in self._shard_files() for name in _shard_header(shard)}
        self._check_factors()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every tensor name, sorted."""
        return tuple(sorted(self._shards))

    @cached_property
    def _headers(self) -> dict[Path, dict[str, Any]]:
        return {shard: _shard_header(shard) for shard in set(self._shards.values())}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, from the file header.

        Raises:
            InputError: no such tensor.
        """
        return tuple(self._header(name)["shape"])

    def dtype(self, name: str) -> str:
        """Storage type of one tensor as safetensors spells it ("F32", "BF16", ...)."""
        return str(self._header(name)["dtype"])

    def tensor(self, name: str) -> Tensor:
        """Read one tensor to CPU in its stored dtype. Nothing else is read."""
        from safetensors import safe_open

        self._header(name)
        with safe_open(self._shards[name], framework="pt") as shard:
            tensor: Tensor = shard.get_tensor(name)
        return tensor

    @property
    def recipe_text(self) -> str:
        """The recipe that made the checkpoint, as YAML; empty for a dense one."""
        recipe = self.path / "recipe.yaml"
        return recipe.read_text(encoding="utf-8") if recipe.is_file() else ""

    def _header(self, name: str) -> dict[str, Any]:
        if name not in self._shards:
            raise InputError(f"{self.path}: tensor {name!r} is missing")
        header: dict[str, Any] = self._headers[self._shards[name]][name]
        return header

    def _shard_files(self) -> list[Path]:
        index = self.path / SAFETENSORS_INDEX
        if not index.is_file():
            single = self.path / "model.safetensors"
            if not single.is_file():
                raise InputError(f"{self.path}: no model.safetensors and no {SAFETENSORS_INDEX} (pickles are not read)")
            return [single]
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        for name in names:
            if Path(name).name != name or not (self.path / name).is_file():
                raise InputError(f"{index}: shard {name!r} is not a file of this folder")
        return [self.path / name for name in names]

    def _check_factors(self) -> None:
        for linear, rank in self.ranks.items():
            u, v = self.shape(linear + U_SUFFIX), self.shape(linear + V_SUFFIX)
            if len(u) != 2 or len(v) != 2 or u[1] != rank or v[0] != rank:
                raise InputError(f"{self.path}: {linear} has factors {u} and {v}, but rank {rank} in config.json")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: missing, not JSON, or not an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a JSON object")
    return data


def _shard_header(path: Path) -> dict[str, Any]:
    """Parse a safetensors header and check every offset against the file size before anything is allocated."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
            raise InputError(f"{path}: not a safetensors file, or truncated")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
        except (UnicodeDecodeError, json.JSONDecodeError):
            raise InputError(f"{path}: damaged safetensors header") from None
    header.pop("__metadata__", None)
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if not 0 <= begin <= end <= size - 8 - length:
            raise InputError(f"{path}: truncated: tensor {name!r} lies beyond the end of the file")
    return header


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars of transformers' own: this package shows its own progress."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load(path: Path | str, *, device: str = "cpu", dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load a checkpoint (factored or dense) as a transformers model in evaluation mode.

    Args:
        path: the checkpoint directory.
        device: torch device of the parameters.
        dtype: parameter dtype; the stored one by default.

    Raises:
        InputError: the directory is damaged or not a checkpoint.
    """
    from transformers import AutoModelForCausalLM

    CheckpointReader(Path(path))
    with quiet_transformers():
        model: Any = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=dtype if dtype is not None else "auto", local_files_only=True, trust_remote_code=False
        )
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded
