"""A GGUF file looked at before llama.cpp sees it: a damaged file must give a line, never end the process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...converter.errors import InputError
from ...converter.layouts import PERM_SUFFIX

MAGIC = b"GGUF"
# Architectures whose linears all pass build_lora_mm, verified against torch. A factored weight used elsewhere would
# end the process inside ggml.
FACTORED_ARCHITECTURES = ("llama", "qwen2", "qwen3")


@dataclass(frozen=True)
class GgufSummary:
    """What decides whether and how a file can be loaded.

    Attributes:
        architecture: `general.architecture`.
        lowrank_version: version of the factored layout, 0 for an ordinary file.
        vocabulary: number of tokens, 0 if the file has none.
    """

    architecture: str
    lowrank_version: int
    vocabulary: int


def inspect_gguf(path: Path) -> GgufSummary:
    """Parse a file's header and check every tensor's extent against the file size.

    Raises:
        InputError: missing, not GGUF, truncated or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise InputError(f"{path}: not a GGUF file")
    size = path.stat().st_size
    try:
        architecture, version, vocabulary, end = _parse(path)
    except Exception as error:  # the reader trusts its input: whatever it stumbles over is damage
        raise InputError(f"{path}: damaged or truncated GGUF file ({type(error).__name__} in its header)") from None
    if end > size:
        raise InputError(f"{path}: truncated GGUF file: {size} bytes, its tensors end at {end}")
    if not architecture:
        raise InputError(f"{path}: damaged GGUF file: no general.architecture")
    return GgufSummary(architecture, version, vocabulary)


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
    if summary.architecture not in FACTORED_ARCHITECTURES:
        raise InputError(
            f"{path}: factored GGUF of architecture {summary.architecture!r}; "
            f"verified are {', '.join(FACTORED_ARCHITECTURES)}"
        )


def _parse(path: Path) -> tuple[str, int, int, int]:
    """Architecture, layout version, number of tokens, and the offset at which the last tensor ends."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    architecture = reader.fields.get("general.architecture")
    version = reader.fields.get("lowrank.version")
    tokens = reader.fields.get("tokenizer.ggml.tokens")
    texts = tokens.contents() if tokens else []
    if len(set(texts)) != len(texts):  # llama.cpp asserts this
        raise ValueError("two tokens with the same text")
    for tensor in reader.tensors:
        if tensor.name.endswith(PERM_SUFFIX) and not _is_permutation(tensor.data):  # ggml asserts the range
            raise ValueError(f"{tensor.name} is no permutation")
    return (
        str(architecture.contents()) if architecture else "",
        int(version.contents()) if version else 0,
        len(texts),
        max((int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors), default=0),
    )


def _is_permutation(values: NDArray[np.generic]) -> bool:
    return values.dtype == np.int32 and bool(np.array_equal(np.sort(values, axis=None), np.arange(values.size)))
