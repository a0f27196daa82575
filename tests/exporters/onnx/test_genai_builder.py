"""The one file that knows the builder: names that moved are reported, nothing leaks into the process."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from lowrank_export.converter.errors import InputError, LowRankError
from lowrank_export.exporters.onnx import genai_builder


def test_installed_builder_has_every_name() -> None:
    genai_builder.check_builder(genai_builder._builders())


def test_moved_class_and_method_are_named() -> None:
    whole = genai_builder._builders()
    names = {name: getattr(whole, name) for name in ("Model", *genai_builder.FAMILIES.values())}
    without_class = SimpleNamespace(**{name: value for name, value in names.items() if name != "Qwen3Model"})
    with pytest.raises(LowRankError, match=r"no Qwen3Model: .*onnxruntime-genai 0\.18"):
        genai_builder.check_builder(without_class)
    without_method = SimpleNamespace(**{**names, "Model": type("Model", (), {"make_model": None})})
    with pytest.raises(LowRankError, match=r"Model\.make_matmul,"):
        genai_builder.check_builder(without_method)


def test_import_leaves_no_top_level_modules_and_keeps_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = ModuleType("quantization")
    monkeypatch.setitem(sys.modules, "quantization", mine)
    path = list(sys.path)
    with genai_builder._private_modules():
        sys.modules["loaders"] = ModuleType("loaders")
        assert "quantization" not in sys.modules
    assert sys.modules["quantization"] is mine and "loaders" not in sys.modules
    assert sys.path == path


def test_unknown_family_is_refused_with_the_list() -> None:
    with pytest.raises(InputError, match=r"'opt'.*llama, mistral, qwen2, qwen3"):
        genai_builder.check_family("opt")
