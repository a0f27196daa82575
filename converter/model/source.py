"""Where a model comes from: a directory, a hub id, a GGUF file or `demo`; all become a Hugging Face directory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.reader import CheckpointReader
from ..core.errors import InputError, naming
from ..core.progress import Progress
from ..families.family import Family
from ..families.table import family_of
from ..storage.documents import shown
from .demo import DEMO_LICENSE, demo_gguf
from .fingerprint import model_sha256
from .gguf_conversion import from_gguf
from .places import is_gguf, model_place
from .vision_check import check_beside

if TYPE_CHECKING:
    from ..distributed.workers import Workers

DEMO = "demo"
GIVE = f"give a Hugging Face folder, a .gguf file, a hub id or `{DEMO}`"


@dataclass(frozen=True)
class Source:
    """A dense model on disk.

    Attributes:
        spec: what the user asked for.
        path: a Hugging Face directory with config, tokenizer and safetensors.
        family: its model family.
        licence: the model's licence where it says so, else "unknown".
    """

    spec: str
    path: Path
    family: Family
    licence: str = "unknown"

    def reader(self) -> CheckpointReader:
        """Lazy access to the tensors."""
        return CheckpointReader(self.path)

    def fingerprint(self) -> str:
        """SHA-256 over config and weight files: what a factored checkpoint records as its origin. Read once."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        return model_sha256(self.path)


def open_source(spec: str, progress: Progress, option: str = "--model") -> Source:
    """Find or fetch a model.

    Args:
        spec: a directory, also one of the hub's cache or one around a GGUF file; a GGUF file, of several parts any one;
            `demo`, or a hub id ("owner/name").
        progress: receives what is fetched, and which file or snapshot was taken.
        option: that names the model, for errors.

    Raises:
        InputError: nothing usable is there, or the family is not supported.
        ResourceError: a download failed.
    """
    if spec == DEMO:
        gguf = demo_gguf(progress)
        return _from_directory(spec, from_gguf(gguf, progress), DEMO_LICENSE)
    path = _place(spec, progress)
    if path.is_dir():
        return _from_directory(spec, path)
    if path.is_file():
        if not is_gguf(path):
            raise InputError(f"{option} {spec}: {_no_model(path)}")
        return _from_directory(spec, from_gguf(path, progress))
    if spec.count("/") == 1 and not spec.startswith((".", "/", "~")):
        with naming(option):
            fetched = _from_hub(spec, progress)
        return _from_directory(spec, fetched)
    raise InputError(f"{option} {spec}: no such folder or file; {GIVE}")


def _no_model(path: Path) -> str:
    """What a file is, if no model."""
    if path.suffix in (".safetensors", ".json"):
        return "is one file of a model; give the folder that it lies in"
    if re.search(r"(part|split)[-_.]?(\d+(of\d+)?|[a-z])$", path.name):
        return "no model; pieces that were cut from one file are joined with cat"
    return f"not a GGUF file; {GIVE}" if path.suffix.lower() == ".gguf" else f"not a model; {GIVE}"


def open_checkpoint(spec: str, progress: Progress, option: str = "--reference") -> Path:
    """Find or fetch a model that may be factored already.

    Args:
        spec: a checkpoint folder, factored or dense, or anything else that `open_source` takes.
        progress, option: as of `open_source`.

    Returns:
        A Hugging Face directory.

    Raises:
        InputError, ResourceError: as `open_source`.
    """
    path = _place(spec, progress)
    return path if path.is_dir() else open_source(spec, progress, option).path


def _place(spec: str, progress: Progress) -> Path:
    """The folder or file that a name stands for, or the name itself."""
    try:
        path = Path(spec).expanduser()
        place = model_place(path) if path.is_dir() else path
        place.exists()
    except (RuntimeError, OSError) as error:  # RuntimeError: the home of nobody
        raise InputError(f"{shown(spec)}: no name of a folder or file ({error})") from None
    if place != path:
        progress.note(f"{spec}: {place.relative_to(path) if place.is_relative_to(path) else place} is taken")
    return place


def check_same(source: Source, workers: Workers) -> None:
    """Make sure that all processes of a job read the same model, by its config and the names and sizes of its files.

    Raises:
        InputError: they do not.
    """
    sizes = {file.name: file.stat().st_size for file in sorted(source.path.glob("*.safetensors"))}
    found = workers.gathered((source.reader().config, sizes))
    if any(other != found[0] for other in found):
        raise InputError(f"{source.spec}: is another model on another machine of this job")


def _from_directory(spec: str, path: Path, licence: str | None = None) -> Source:
    reader = CheckpointReader(path)
    if reader.ranks:
        raise InputError(f"{spec}: is a factored checkpoint already; start from the dense model")
    family = family_of(reader.config, spec)
    check_beside(reader)
    return Source(spec, path, family, licence or _licence(path))


def _licence(path: Path) -> str:
    """The `license:` line of the model card's front matter."""
    card = path / "README.md"
    if card.is_file():
        for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[:60]:
            if line.startswith("license:"):
                return line.removeprefix("license:").strip()
    return "unknown"


def _from_hub(spec: str, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download

    progress.note(f"fetching {spec}")
    patterns = ["*.json", "*.safetensors", "tokenizer*", "*.jinja", "README.md", "LICENSE*"]
    try:
        return Path(snapshot_download(spec, allow_patterns=patterns))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{spec}: no such folder here, and not found as a hub id ({reason})") from None
