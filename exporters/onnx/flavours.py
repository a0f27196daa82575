"""ONNX Runtime comes in flavours (CPU, GPU) that share one import package: installed together they break each other."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from ...converter.core.errors import ResourceError

FLAVOURS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "ort-nightly"),
    "onnxruntime_genai": ("onnxruntime-genai", "onnxruntime-genai-cuda", "onnxruntime-genai-directml"),
}
"""Import package -> the distributions that all write their files into it."""


def installed_flavours() -> list[str]:
    """Every installed distribution of ONNX Runtime and ONNX Runtime GenAI as "name version", sorted."""
    found = []
    for name in (name for names in FLAVOURS.values() for name in names):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return sorted(found)


def check_single_flavour() -> None:
    """Check that at most one flavour of each package is installed.

    Raises:
        ResourceError: two flavours overwrite each other's files; the message names what to uninstall.
    """
    installed = {flavour.split()[0] for flavour in installed_flavours()}
    for package, names in FLAVOURS.items():
        doubled = sorted(installed.intersection(names))
        if len(doubled) > 1:
            raise ResourceError(
                f"{' and '.join(doubled)} are both installed and overwrite each other's files ({package}); run "
                f"`pip uninstall {' '.join(doubled)}`, then install only one of them"
            )
