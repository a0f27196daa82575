"""Two flavours of ONNX Runtime in one environment are reported."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from lowrank_export.converter.core.errors import ResourceError
from lowrank_export.exporters.onnx import flavours


def pretend(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def version(name: str) -> str:
        if name in names:
            return "1.0"
        raise PackageNotFoundError(name)

    monkeypatch.setattr(flavours, "version", version)


def test_one_flavour_of_each_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "numpy", "onnxruntime-gpu", "onnxruntime-genai-cuda")
    assert flavours.installed_flavours() == ["onnxruntime-genai-cuda 1.0", "onnxruntime-gpu 1.0"]
    flavours.check_single_flavour()


@pytest.mark.parametrize(
    "names", [("onnxruntime", "onnxruntime-gpu"), ("onnxruntime-genai", "onnxruntime-genai-cuda", "onnxruntime")]
)
def test_doubled_install_names_what_to_remove(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    pretend(monkeypatch, *names)
    with pytest.raises(ResourceError, match=r"pip uninstall onnxruntime") as error:
        flavours.check_single_flavour()
    assert "\n" not in str(error.value)


def test_this_environment() -> None:
    assert any(name.startswith("onnxruntime") for name in flavours.installed_flavours())
    flavours.check_single_flavour()
