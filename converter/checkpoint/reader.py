"""The factored checkpoint on disk: a Hugging Face directory whose compressed linears are stored as factors."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError
from ..families.table import FAMILIES, completed
from ..families.vision.table import vision_language
from ..families.vision.vision_language import VisionLanguage
from ..storage.documents import MAX_JSON_BYTES, parse_json, read_text_file, shown
from ..storage.links import check_links
from ..storage.safetensors_header import read_header
from .factored_config import plain_config
from .language_part import language_config, language_prefixes, lies_beside, whole_config, whole_name
from .layouts import C_SUFFIX, LAYOUTS, P_SUFFIX, PERM_SUFFIX, U_SUFFIX, V_SUFFIX
from .prefixes import Prefix, foreign_prefixes, plain_name

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS_INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
ROWS = 4096  # compared at once
_COMPARED: dict[tuple[object, str, str], bool] = {}


class CheckpointReader:
    """Reads a checkpoint directory, factored or dense, tensor by tensor.

    Names are those of the family's table, whatever prefix all names of the files share. `config` is config.json with
    the sizes that transformers assumes filled in, and `tie_word_embeddings` as the tensors have it.

    Of a vision-language model it gives the language model, as if that were alone; `beside` names the other tensors.

    Raises:
        InputError: the directory is not a checkpoint, a shard is damaged, or a factor disagrees with its rank.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise InputError(f"{path}: no such directory; give the folder of a Hugging Face checkpoint")
        check_links(self.path)
        if (self.path / "adapter_config.json").exists():  # transformers would look for the model that it names
            raise InputError(f"{path}: holds an adapter (adapter_config.json); merge it into its model first")
        self._whole = plain_config(read_json(self.path / "config.json"))
        self.around: VisionLanguage | None = vision_language(self._whole)
        inner = self._whole if self.around is None else language_config(self._whole, self.around, str(self.path))
        self.config: dict[str, Any] = completed(inner)
        self.lowrank: dict[str, Any] = _lowrank_config(self.config, self.path)
        self.ranks: dict[str, int] = self.lowrank.get("ranks", {})
        shards: dict[str, Path] = {}
        for shard in self._shard_files():
            for name in read_header(shard):
                if name in shards:
                    raise InputError(f"{shard}: holds {shown(name)}, and so does {shards[name].name}")
                shards[name] = shard
        self._beside = {} if self.around is None else _taken_beside(shards, self.around)
        family = FAMILIES.get(str(self.config.get("model_type")))
        self.prefixes: tuple[Prefix, ...] = (
            foreign_prefixes(shards, family) if self.around is None else language_prefixes(self.around)
        )
        renamed = {} if family is None else family.stored_names
        self._stored = {plain_name(name, self.prefixes, renamed): name for name in shards}
        if len(self._stored) < len(shards):
            twice = min(set(shards) - set(self._stored.values()))
            raise InputError(f"{self.path}: holds {shown(twice)} under another name too")
        self._shards = {plain: shards[name] for plain, name in self._stored.items()}
        self._check_factors()
        self._settle_tied()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every tensor name, sorted."""
        return tuple(sorted(self._shards))

    @cached_property
    def beside(self) -> Mapping[str, tuple[int, ...]]:
        """Name in the files -> shape of every tensor of a vision-language model outside its language model."""
        return {name: tuple(self._headers[shard][name]["shape"]) for name, shard in sorted(self._beside.items())}

    @cached_property
    def beside_bytes(self) -> int:
        """Of the tensors that `beside` names."""
        places = (self._headers[shard][name]["data_offsets"] for name, shard in self._beside.items())
        return sum(end - begin for begin, end in places)

    def tensor_beside(self, name: str) -> Tensor:
        """Read one of the tensors that `beside` names, see `tensor`."""
        return _read(self._beside[name], name)

    def whole_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What config.json says with another configuration in place of `config`; unchanged where nothing is around."""
        return dict(config) if self.around is None else whole_config(self._whole, config, self.around)

    def whole_name(self, name: str) -> str:
        """What transformers' model of the folder calls a module or tensor that has this name here."""
        return name if self.around is None else whole_name(name, self.around)

    @cached_property
    def _headers(self) -> dict[Path, dict[str, Any]]:
        return {shard: read_header(shard) for shard in {*self._shards.values(), *self._beside.values()}}

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
        """Read one tensor to CPU in its stored dtype. Nothing else is read.

        Raises:
            InputError: no such tensor, or not one of PyTorch's.
        """
        self._header(name)
        return _read(self._shards[name], self._stored[name])

    @property
    def recipe_text(self) -> str:
        """The recipe that made the checkpoint, as YAML; empty for a dense one."""
        recipe = self.path / "recipe.yaml"
        return recipe.read_text(encoding="utf-8") if recipe.is_file() else ""

    def _header(self, name: str) -> dict[str, Any]:
        if name not in self._shards:
            raise InputError(f"{self.path}: tensor {name!r} is missing")
        header: dict[str, Any] = self._headers[self._shards[name]][self._stored[name]]
        return header

    def _shard_files(self) -> list[Path]:
        named = self._whole.get("transformers_weights")  # transformers would read these, and no other file
        if named not in (None, SAFETENSORS_INDEX, SINGLE):
            raise InputError(
                f"{self.path}: config.json says transformers_weights is {shown(named)}; call the weights {SINGLE}, or "
                f"their index {SAFETENSORS_INDEX}, and take that key out"
            )
        index, single = self.path / SAFETENSORS_INDEX, self.path / SINGLE
        if not index.is_file():
            if not single.is_file():
                raise InputError(f"{self.path}: no {SINGLE} and no {SAFETENSORS_INDEX} (pickles are not read)")
            return [single]
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InputError(f"{index}: no weight_map")
        here = {entry.name for entry in self.path.iterdir() if entry.is_file()}
        names = sorted(set(map(str, weight_map.values())))
        for name in names:
            if name not in here:
                raise InputError(f"{index}: shard {shown(name)} is not a file of this folder")
        if single.is_file():  # transformers takes this one
            return [single]
        return [self.path / name for name in names]

    @property
    def layout(self) -> str:
        """How compressed linears are stored, see layouts.py; "dense" where there are none."""
        return str(self.lowrank.get("layout", "two-factor")) if self.lowrank else "dense"

    def permutation(self, linear: str) -> Tensor | None:
        """The order of a linear's rows, (m,) int32, checked to be a permutation; None where there is none.

        Raises:
            InputError: not a permutation of the rows.
        """
        name = linear + PERM_SUFFIX
        if name not in self._shards:
            return None
        perm = self.tensor(name)
        rows = self.shape(linear + P_SUFFIX)[0] + self.shape(linear + C_SUFFIX)[0]
        if self.dtype(name) != "I32" or self.shape(name) != (rows,) or perm.sort().values.tolist() != list(range(rows)):
            raise InputError(f"{self.path}: {name} is not a permutation of {rows} rows in int32")
        return perm

    def _settle_tied(self) -> None:
        """Let the tensors decide whether the head is the embedding; the config's word holds where only one is there."""
        family = FAMILIES.get(str(self.config.get("model_type")))
        if family is None or not self.config.get("tie_word_embeddings"):
            return
        head, embedding = (path + ".weight" for path in (family.head, family.embedding))
        if head in self._shards and embedding not in self._shards:  # one of the two is there, under the other's name
            self._shards[embedding], self._stored[embedding] = self._shards.pop(head), self._stored.pop(head)
        if head in self._shards and embedding in self._shards and not self._same(head, embedding):
            self.config["tie_word_embeddings"] = False

    def _same(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same numbers; compared once per process and state of the files."""
        if self.shape(one) != self.shape(other):
            return False
        files = (self._shards[one], self._shards[other])
        key = (tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files), one, other)
        if key not in _COMPARED:
            _COMPARED[key] = _equal(self.tensor(one), self.tensor(other))
        return _COMPARED[key]

    def _check_factors(self) -> None:
        check = self._check_pivot if self.layout == "pivot" else self._check_two_factor
        for linear, rank in self.ranks.items():
            check(linear, rank)

    def _check_two_factor(self, linear: str, rank: int) -> None:
        u, v = self.shape(linear + U_SUFFIX), self.shape(linear + V_SUFFIX)
        if len(u) != 2 or len(v) != 2 or u[1] != rank or v[0] != rank:
            raise InputError(f"{self.path}: {linear} has factors {u} and {v}, but rank {rank} in config.json")

    def _check_pivot(self, linear: str, rank: int) -> None:
        p, c = self.shape(linear + P_SUFFIX), self.shape(linear + C_SUFFIX)
        if len(p) != 2 or len(c) != 2 or p[0] != rank or c[1] != rank:
            raise InputError(
                f"{self.path}: {linear} has pivot rows {p} and coefficients {c}, but rank {rank} in config.json"
            )
        self.permutation(linear)


def _read(shard: Path, name: str) -> Tensor:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
    except (SafetensorError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{shard}: tensor {name!r} cannot be read ({error})") from None
    return tensor


def _taken_beside(shards: dict[str, Path], around: VisionLanguage) -> dict[str, Path]:
    """Take what lies beside the language model out of the names of a checkpoint."""
    return {name: shards.pop(name) for name in sorted(shards) if lies_beside(name, around)}


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two matrices hold the same numbers, whatever they are stored in, a few rows at a time."""
    if one.dtype == other.dtype:
        return bool(one.equal(other))
    starts = range(0, len(one), ROWS)
    return all(one[start : start + ROWS].float().equal(other[start : start + ROWS].float()) for start in starts)


def _lowrank_config(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The `quantization_config` of a factored checkpoint; empty for a dense one."""
    found = config.get("quantization_config")
    if not found:
        return {}
    method = found.get("quant_method") if isinstance(found, dict) else found
    if method != "lowrank" or not isinstance(found, dict):
        raise InputError(f"{path}: already quantized ({shown(method)}); start from the unquantized checkpoint")
    ranks = found.get("ranks", {})
    if not isinstance(ranks, dict) or not all(type(rank) is int and rank > 0 for rank in ranks.values()):
        raise InputError(f"{path}: config.json holds no ranks of the linears")
    layout = found.get("layout", LAYOUTS[0])
    if layout not in LAYOUTS:
        raise InputError(
            f"{path}: factored checkpoint has layout {shown(layout)}; this version reads: {', '.join(LAYOUTS)}"
        )
    lowrank: dict[str, Any] = found
    return lowrank


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: missing, not JSON, or not an object.
    """
    text = read_text_file(path, MAX_JSON_BYTES)
    try:
        data = parse_json(text)
    except ValueError as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a JSON object")
    return data
