"""A GGUF file -> a Hugging Face directory in the cache, through transformers, once."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.progress import Progress
from ..families.table import FAMILIES, family_of
from ..storage.documents import shown
from ..storage.files import cache_folder, file_sha256, replacing, writable_cache
from ..storage.gguf_header import Header, read_header
from .config_check import check_sizes
from .gguf_parts import gguf_parts, join_parts
from .loading import check_complete, quiet_transformers, refusing

CONVERSION = 2  # raised when the conversion of a GGUF changes, so that no older copy in the cache is used


def from_gguf(path: Path, progress: Progress) -> Path:
    """Dequantize a GGUF through transformers into a directory of the cache, once."""
    parts = gguf_parts(path)
    hashes = [file_sha256(part) for part in parts]
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
        alone = Path(stack.enter_context(tempfile.TemporaryDirectory()))  # of the file's neighbors nothing is read
        (alone / "model.gguf").symlink_to(path.resolve())
        here: dict[str, Any] = {"gguf_file": "model.gguf", "local_files_only": True, "trust_remote_code": False}
        config: Any = AutoConfig.from_pretrained(str(alone), **here)
        _restore(config, header.metadata)
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
    experts = any(name.endswith(".ffn_gate_inp.weight") for name in shapes)
    if family.gguf is None or not family.gguf.read or experts:
        what = "experts" if experts else f"family {family.model_type!r}"
        raise InputError(f"{path}: a GGUF file of {what} is not read; give the model's Hugging Face folder")

    kind = header.metadata.get("tokenizer.ggml.model")
    if family.gguf.tokenizer not in ("", kind):
        raise InputError(
            f"{path}: has a tokenizer of kind {shown(kind)}, of which transformers makes another one in a "
            f"{family.model_type} model; give the model's Hugging Face folder"
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


def _restore(config: Any, fields: Mapping[str, Any]) -> None:
    """Put back what transformers leaves out: the size of a head, for which it takes the default, and the family's."""
    architecture = f"{fields.get('general.architecture')}."
    said = {key.removeprefix(architecture): value for key, value in fields.items() if key.startswith(architecture)}
    size = said.get("attention.key_length")
    if size is not None and hasattr(config, "head_dim"):
        config.head_dim = int(size)
    family = FAMILIES.get(config.model_type)
    if family is not None and family.gguf is not None:
        for key, value in family.gguf.restored(said).items():
            setattr(config, key, value)


def _split_digits(tokenizer: Any) -> None:
    """Put back what transformers leaves out of a GGUF's tokenizer: "smollm" splits numbers into digits."""
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
