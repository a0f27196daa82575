"""Formats of artifacts, and the runtimes that run them."""

from __future__ import annotations

from pathlib import Path

from ...converter.core.errors import InputError
from ...exporters.registry import TARGETS

TORCH, LLAMA_CPP, ONNXRUNTIME, GENAI = "torch", "llama.cpp", "onnxruntime", "onnxruntime-genai"
CHECKPOINT = "checkpoint"
"""The format that is no export: a Hugging Face folder, which torch runs."""


def artifact_format(path: Path) -> str:
    """The format of an artifact: that of the target that recognizes it, or `CHECKPOINT`.

    Raises:
        InputError: missing, or none of these.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a .gguf file, an ONNX folder or a checkpoint folder")
    for format, target in TARGETS.items():
        if target.recognizes(path):
            return format
    if (path / "config.json").is_file():
        return CHECKPOINT
    raise InputError(f"{path}: neither a .gguf file nor a folder with model.onnx or config.json")


def backend_names(path: Path) -> tuple[str, ...]:
    """The runtimes that can run an artifact.

    Raises:
        InputError: not an artifact.
    """
    format = artifact_format(path)
    return (TORCH,) if format == CHECKPOINT else TARGETS[format].runtimes
