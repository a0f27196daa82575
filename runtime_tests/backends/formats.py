"""Formats of artifacts, and the runtimes that run them."""

from __future__ import annotations

from pathlib import Path

from ...converter.core.errors import InputError

TORCH, LLAMA_CPP, ONNXRUNTIME, GENAI = "torch", "llama.cpp", "onnxruntime", "onnxruntime-genai"
RUNTIMES: dict[str, tuple[str, ...]] = {
    "gguf": (LLAMA_CPP,),
    "onnx": (ONNXRUNTIME, GENAI),
    "checkpoint": (TORCH,),
}
"""Format of an artifact -> the runtimes that run it."""


def artifact_format(path: Path) -> str:
    """Tell "gguf" (a .gguf file), "onnx" (a folder with model.onnx) and "checkpoint" (a Hugging Face folder) apart.

    Raises:
        InputError: missing, or none of these.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give a .gguf file, an ONNX folder or a checkpoint folder")
    if path.is_file() and path.suffix.lower() == ".gguf":
        return "gguf"
    if (path / "model.onnx").is_file():
        return "onnx"
    if (path / "config.json").is_file():
        return "checkpoint"
    raise InputError(f"{path}: neither a .gguf file nor a folder with model.onnx or config.json")


def backend_names(path: Path) -> tuple[str, ...]:
    """The runtimes that can run an artifact.

    Raises:
        InputError: not an artifact.
    """
    return RUNTIMES[artifact_format(path)]
