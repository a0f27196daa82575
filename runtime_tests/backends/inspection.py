"""A GGUF file looked at before llama.cpp sees it: a damaged file must give a line, never end the process."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from ...converter.checkpoint.layouts import PERM_SUFFIX
from ...converter.core.errors import InputError
from ...converter.families.table import factored_architectures
from ...converter.model.gguf_parts import gguf_parts, read_whole
from ...converter.storage.gguf_header import StoredTensor, read_header
from ...exporters.gguf.adapter_files import find_adapter
from ...exporters.gguf.types import INTEGERS


@dataclass(frozen=True)
class GgufSummary:
    """What decides whether and how a file can be loaded.

    Attributes:
        architecture: `general.architecture`.
        lowrank_version: version of the factored layout, 0 for an ordinary file.
        vocabulary: number of tokens, 0 if the file has none.
        adapter: the LoRA adapter that the file is worthless without, None for others.
    """

    architecture: str
    lowrank_version: int
    vocabulary: int
    adapter: Path | None = None


def inspect_gguf(path: Path) -> GgufSummary:
    """Read the header of a file, or of any of its parts, as `read_whole` does, and what llama.cpp would end the
    process over.

    Raises:
        InputError: missing, not GGUF, truncated or damaged; or its adapter is.
    """
    header = read_whole(path)
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise InputError(f"{path}: damaged GGUF file: no general.architecture")
    if header.metadata.get("general.type") == "adapter":
        raise InputError(f"{path}: is a LoRA adapter; give the base file that it belongs to")
    version = header.metadata.get("lowrank.version", 0)
    tokens = header.metadata.get("tokenizer.ggml.tokens", [])
    if not isinstance(version, int) or not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
        raise InputError(f"{path}: damaged GGUF file: lowrank.version or the vocabulary has the wrong type")
    if len(set(tokens)) != len(tokens):  # llama.cpp asserts this
        raise InputError(f"{path}: damaged GGUF file: two tokens with the same text")
    stored = [(part, tensor) for part in gguf_parts(path) for tensor in read_header(part).tensors]
    for part, tensor in stored:
        if tensor.name.endswith(PERM_SUFFIX) and not _is_permutation(part, tensor):  # ggml asserts the range
            raise InputError(f"{path}: damaged GGUF file: {tensor.name} is no permutation")
    adapter = find_adapter(path, header)
    if adapter is not None:
        read_header(adapter)
    return GgufSummary(architecture, version, len(tokens), adapter)


def check_loadable(path: Path, summary: GgufSummary, *, patched_version: int) -> None:
    """Refuse a factored file that the library at hand cannot compute.

    Args:
        path: for the message.
        summary: as `inspect_gguf` gives it.
        patched_version: factored layout the library knows, 0 for one without the patch.

    Raises:
        InputError: the patch is missing or too old, or the architecture is not one it covers.
    """
    if not summary.lowrank_version:
        return
    if summary.lowrank_version > patched_version:
        have = f"knows version {patched_version}" if patched_version else "lacks the low-rank patch"
        raise InputError(
            f"{path}: factored GGUF (version {summary.lowrank_version}), but this llama.cpp library {have}"
        )
    verified = factored_architectures()
    if summary.architecture not in verified:
        raise InputError(
            f"{path}: factored GGUF of architecture {summary.architecture!r}; verified are {', '.join(verified)}"
        )


def _is_permutation(path: Path, tensor: StoredTensor) -> bool:
    if tensor.type != INTEGERS:
        return False
    values = np.fromfile(path, dtype=np.int32, count=prod(tensor.shape), offset=tensor.offset)
    return bool(np.array_equal(np.sort(values), np.arange(values.size)))
