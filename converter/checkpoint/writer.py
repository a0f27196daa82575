"""Writes a factored checkpoint shard by shard; the folder appears whole or not at all (see files.replacing)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import InputError
from ..factors.finite import all_finite
from ..storage.links import TEMPLATES
from .reader import SAFETENSORS_INDEX, CheckpointReader

SIDE_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "*.jinja",
    f"{TEMPLATES}/*.jinja",
    "generation_config.json",
    "processor_config.json",
    "*preprocessor_config.json",
    "chat_template.json",
    "LICENSE*",
)


AT_ONCE = 1 << 26
"""Bytes of tensors that are copied together."""


class CheckpointWriter:
    """Collects tensors into shards of one block each and writes the index and config at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._weight_map: dict[str, str] = {}
        self._total_bytes = 0
        self._beside = 0

    def write_shard(self, label: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors as `model-LABEL.safetensors`.

        Raises:
            InputError: a tensor is not finite; nothing is written for it.
        """
        from safetensors.torch import save_file

        stored = {}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not all_finite(tensor):
                raise InputError(f"{name}: holds NaN or Inf in {tensor.dtype}; choose a wider --dtype")
            stored[name] = tensor.detach().cpu().contiguous()
        shard = f"model-{label}.safetensors"
        save_file(stored, self._folder / shard, metadata={"format": "pt"})
        self._weight_map.update(dict.fromkeys(stored, shard))
        self._total_bytes += sum(tensor.numel() * tensor.element_size() for tensor in stored.values())

    def copy_beside(self, source: CheckpointReader) -> None:
        """Copy what a vision-language checkpoint holds beside its language model, byte for byte."""
        taken: dict[str, Tensor] = {}
        for name in source.beside:
            taken[name] = source.tensor_beside(name)
            if sum(tensor.numel() * tensor.element_size() for tensor in taken.values()) > AT_ONCE:
                self._write_beside(taken)
        self._write_beside(taken)

    def _write_beside(self, taken: dict[str, Tensor]) -> None:
        if taken:
            self._beside += 1
            self.write_shard(f"beside-{self._beside:05d}", taken)
            taken.clear()

    def finish(self, source: CheckpointReader, config: Mapping[str, Any], texts: Mapping[str, str]) -> None:
        """Write index, config, texts (file name -> content) and the source's tokenizer files."""
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": dict(sorted(self._weight_map.items()))}
        (self._folder / SAFETENSORS_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        (self._folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for file in (found for pattern in SIDE_FILES for found in source.path.glob(pattern)):
            to = self._folder / file.relative_to(source.path)
            to.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, to)
        for name, text in texts.items():
            (self._folder / name).write_text(text, encoding="utf-8")
