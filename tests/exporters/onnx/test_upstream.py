"""The table of upstream names: what moved is said in one sentence, nothing leaks into the process."""

from __future__ import annotations

import ast
import inspect
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lowrank_export.converter.core.errors import LowRankError
from lowrank_export.converter.families.table import FAMILIES, built_onnx
from lowrank_export.exporters.onnx import upstream
from lowrank_export.exporters.onnx.builder import (
    factored_matmuls,
    fused_linears,
    genai_builder,
    lowrank_builder,
    stored_matrices,
)


def test_installed_builder_is_the_one_this_was_written_for() -> None:
    problems = upstream.differences(upstream.builder_classes())
    assert not problems, f"onnxruntime-genai's model builder has moved: {'; '.join(problems)}. Mend upstream.py."


def test_every_family_class_is_in_the_table() -> None:
    assert {FAMILIES[name].onnx.builder for name in built_onnx()} <= set(upstream.CLASSES)


def test_every_method_our_subclass_overrides_is_in_the_table() -> None:
    """A method added to the subclass without a line in the table would not be watched."""
    pinned = {*upstream.METHODS, *(path.partition(".")[2] for path in upstream.CLASS_METHODS)}
    ours = {name for name, value in vars(lowrank_builder.lowrank_builder("LlamaModel")).items() if callable(value)}
    assert ours <= pinned, f"overridden but not in upstream.METHODS: {sorted(ours - pinned)}"


def test_everything_taken_from_the_builder_is_in_the_tables() -> None:
    """What the code names of `self` and `builder`, methods, attributes and keys; our own names start with `_`."""
    listed = {*upstream.METHODS, *(path.partition(".")[2] for path in upstream.CLASS_METHODS)}
    for attributes in upstream.ATTRIBUTES.values():
        listed |= {*attributes, *(f"{name}['{key}']" for name, keys in attributes.items() for key in keys)}
    for module in (genai_builder, lowrank_builder, factored_matmuls, fused_linears, stored_matrices):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            match node:
                case ast.Attribute(value=ast.Name(id="self" | "builder"), attr=name) if not name.startswith("_"):
                    assert name in listed, f"{module.__name__} names {name}: not in upstream.py"
                case ast.Subscript(value=ast.Attribute(attr=name), slice=ast.Constant(value=str(key))):
                    assert f"{name}['{key}']" in listed, f"{module.__name__} names {name}['{key}']: not in upstream.py"
                case ast.Call(func=ast.Attribute(value=ast.Attribute(attr=name), attr="update"), keywords=keywords):
                    keys = {f"{name}['{word.arg}']" for word in keywords if word.arg}
                    assert keys <= listed, f"{module.__name__} sets {sorted(keys - listed)}: not in upstream.py"


def test_moved_attribute_and_key_are_named() -> None:
    class Moved:
        def make(self) -> None:
            self.io_type = self.layernorm_attrs["eps"]  # type: ignore[attr-defined]

    problems = upstream.differences(pretend(Gemma3Model=Moved, Model=Moved))
    assert {"Model has no io_dtype", "Model has no layernorm_attrs['epsilon']"} <= set(problems)
    assert "Model has no layernorm_attrs" not in problems
    assert "Gemma3Model has no cos_cache_local_name" in problems


def pretend(**changes: Any) -> SimpleNamespace:
    """The installed builder's classes with some replaced; None removes one."""
    whole = upstream.builder_classes()
    classes = {name: getattr(whole, name) for name in upstream.CLASSES} | changes
    return SimpleNamespace(**{name: value for name, value in classes.items() if value is not None})


def test_moved_class_is_named() -> None:
    with pytest.raises(LowRankError, match=r"it has no Qwen3Model: .*onnxruntime-genai 0\.18") as error:
        upstream.check_builder(pretend(Qwen3Model=None))
    assert "\n" not in str(error.value)


def test_moved_method_and_changed_signature_are_named() -> None:
    class Moved(upstream.builder_classes().Model):  # type: ignore[misc, name-defined]
        make_rope_init = None

        def make_matmul(self, matmul: Any, root_input: str) -> None: ...

    with pytest.raises(LowRankError) as error:
        upstream.check_builder(pretend(Model=Moved))
    assert "it has no Model.make_rope_init" in str(error.value)
    assert "Model.make_matmul takes (matmul, root_input), not (matmul, basename, root_input, **kwargs)" in str(
        error.value
    )


def test_installed_exporter_of_transformers_is_the_one_this_was_written_for() -> None:
    upstream.check_torch_exporter(upstream.torch_exporter())


def test_moved_exporter_is_named() -> None:
    class Moved:
        def export(self, model: Any) -> None: ...

    class Fewer:
        def __init__(self, dynamic: bool) -> None: ...

    with pytest.raises(LowRankError) as error:
        upstream.check_torch_exporter(SimpleNamespace(OnnxExporter=Moved, OnnxConfig=Fewer))
    assert "OnnxExporter.export takes (model), not (model, sample_inputs, config)" in str(error.value)
    assert "OnnxConfig has no dynamic_shapes" in str(error.value)
    with pytest.raises(LowRankError, match=r"it has no OnnxExporter\.export; OnnxConfig has no dynamic;"):
        upstream.check_torch_exporter(SimpleNamespace())


def test_import_leaves_no_top_level_modules_and_keeps_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = ModuleType("quantization")
    monkeypatch.setitem(sys.modules, "quantization", mine)
    path = list(sys.path)
    with upstream.private_modules():
        sys.modules["loaders"] = ModuleType("loaders")
        assert "quantization" not in sys.modules
    assert sys.modules["quantization"] is mine and "loaders" not in sys.modules
    assert sys.path == path
