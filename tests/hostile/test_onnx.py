"""ONNX folders: graphs, external data and genai_config.json that reach out of the folder, or lie."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

Copy = Callable[[str], Path]
Refused = Callable[..., str]
Change = Callable[[onnx.ModelProto], object]


@pytest.mark.parametrize("content", [b"", b"\x00", b"PK\x03\x04", b"\x08" * 1000, b"\x0a\xff\xff\xff\xff\x7f"])
def test_graphs_that_are_none(copied: Copy, refused: Refused, content: bytes) -> None:
    (folder := copied("onnx")).joinpath("model.onnx").write_bytes(content)
    refused("inspect", folder, code=3, needle="onnx")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_truncated(copied: Copy, refused: Refused, share: float) -> None:
    path = (folder := copied("onnx")) / "model.onnx"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused("inspect", folder, code=3, needle="not an ONNX model, or truncated")


def test_names_that_are_no_text(copied: Copy, refused: Refused) -> None:
    """Protobuf gives bytes for them."""
    path = (folder := copied("onnx")) / "model.onnx"
    data = path.read_bytes()
    names = (b"model.layers.0.input_layernorm.weight", b"past_key_values.0.key", b"model.onnx.data")
    for name in (*names, b"lowrank.quantisation", b"length"):
        assert name in data
        path.write_bytes(data.replace(name, b"\xff" + name[1:]))
        refused("inspect", folder, code=3, needle="onnx")


def changed(folder: Path, change: Change) -> Path:
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def outside(model: onnx.ModelProto) -> Any:
    return next(tensor for tensor in model.graph.initializer if tensor.external_data)


def placed(**values: str | None) -> Change:
    """Change, or leave out, what says where the first external tensor lies."""

    def change(model: onnx.ModelProto) -> None:
        tensor = outside(model)
        entries = {item.key: item.value for item in tensor.external_data} | values
        del tensor.external_data[:]
        for key, value in entries.items():
            if value is not None:
                tensor.external_data.add(key=key, value=value)

    return change


def reaching() -> TensorProto:
    """A tensor whose data lie elsewhere."""
    tensor = TensorProto(name="x", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def in_constant(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["x"], value=reaching()))


def in_branch(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "g", [], [], [reaching()])
    model.graph.node.append(helper.make_node("If", ["c"], ["x"], then_branch=inner, else_branch=inner))


def in_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["x"], value=reaching())
    model.functions.append(helper.make_function("d", "f", [], ["x"], [node], []))


def in_sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(reaching())


NOT_HERE = "is missing, or not a file of this folder"
PLACES: dict[str, tuple[Change, str]] = {
    **{
        f"location {name!r:.20}": (placed(location=name), NOT_HERE)
        for name in (
            "../x",
            "/etc/passwd",
            "",
            ".",
            "..",
            "sub/x",
            "sub/../model.onnx.data",
            "none",
            "..\\x",
            "x" * 300,
        )
    },
    "no location": (placed(location=None), NOT_HERE),
    "offset beyond": (placed(offset=str(2**40)), "lies beyond the end"),
    "length beyond": (placed(length=str(2**40)), "lies beyond the end"),
    "huge length": (placed(length="9" * 100), "lies beyond the end"),
    "negative offset": (placed(offset="-4096"), "lies beyond the end"),
    "negative length": (placed(length="-1"), "lies beyond the end"),
    "offset is text": (placed(offset="x"), "the place of tensor"),
    "offset of digits": (placed(offset="9" * 10_000), "the place of tensor"),
    "another length": (placed(length="8"), "not those of its shape"),
    "in a constant": (in_constant, NOT_HERE),
    "in a branch": (in_branch, NOT_HERE),
    "in a function": (in_function, NOT_HERE),
    "in a sparse tensor": (in_sparse, NOT_HERE),
    "negative shape": (lambda model: model.graph.initializer[0].dims.__setitem__(0, -4), "has shape"),
    "huge shape": (lambda model: model.graph.initializer[0].dims.__setitem__(0, 2**62), "damaged ONNX model"),
    "huge shape outside": (lambda model: outside(model).dims.__setitem__(0, 2**62), "not those of its shape"),
    "unknown type": (lambda model: setattr(outside(model), "data_type", 999), "the place of tensor"),
    "node without sizes": (
        lambda model: [node.ClearField("attribute") for node in model.graph.node],
        "damaged ONNX model",
    ),
    "node without inputs": (
        lambda model: [node.ClearField("input") for node in model.graph.node],
        "damaged ONNX model",
    ),
}


@pytest.mark.parametrize("case", PLACES)
def test_graphs(copied: Copy, refused: Refused, case: str) -> None:
    change, needle = PLACES[case]
    refused("inspect", changed(copied("onnx"), change), code=3, needle=needle)


def test_links(copied: Copy, refused: Refused, tmp_path: Path) -> None:
    data = (folder := copied("onnx")) / "model.onnx.data"
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    refused("inspect", folder, code=3, needle="is a link that leads out of its folder")


def decoder(**keys: Any) -> dict[str, Any]:
    return {"model": {"decoder": keys}}


CONFIGS: dict[str, tuple[Any, str]] = {
    "empty": ("", "not readable as JSON"),
    "nested": ("[" * 100_000, "nested too deeply"),
    "list": ("[]", "expected a JSON object"),
    "no model": ({"model": None}, "head_size is missing"),
    "model is a list": ({"model": []}, "head_size is missing"),
    "no decoder": ({"model": {"decoder": None}}, "head_size is missing"),
    "library": (decoder(session_options={"custom_ops_library": "/opt/evil.so"}), "'custom_ops_library'"),
    "library elsewhere": ({"model": {"custom_ops_library": "evil.so"}}, "'custom_ops_library'"),
    "library of an encoder": (
        {"model": {"encoder": {"session_options": {"custom_ops_library": "x.so"}}}},
        "'custom_ops_library'",
    ),
    "library in a list": (decoder(pipeline=[{"a": {"session_options": {"custom_ops_library": "x"}}}]), "custom_ops"),
    "profile": (decoder(session_options={"enable_profiling": "trace"}), "'enable_profiling'"),
    "options are a list": (decoder(session_options=["x"]), "session_options hold"),
    "provider": (decoder(session_options={"provider_options": [{"evil": {"path": "x.so"}}]}), "provider_options"),
    "plugin": ({"plugin_path": "x.so"}, "'plugin_path'"),
    "other file": (decoder(filename="../model.onnx"), "only model.onnx is run"),
    "absolute file": (decoder(filename="/etc/passwd"), "only model.onnx is run"),
    "file of an encoder": ({"model": {"vision": {"filename": "x.onnx"}}}, "only model.onnx is run"),
    "file is a list": (decoder(filename=["model.onnx"]), "only model.onnx is run"),
    "format string": (decoder(inputs={"past_key_names": "past.%s%s%n"}), "no names of a graph"),
    "width in a name": (decoder(inputs={"past_key_names": "%999999999d"}), "no names of a graph"),
    "long name": (decoder(outputs={"logits": "x" * 10_000}), "no names of a graph"),
    "names are a list": (decoder(inputs=[]), "no names of a graph"),
    "head size is text": (decoder(head_size="16"), "head_size is '16'"),
    "no head size": (decoder(head_size=0), "head_size is 0"),
    "huge head size": (decoder(head_size=2**30), "is not that of model.onnx"),
    "huge blocks": (decoder(num_hidden_layers=2**30), "is not that of model.onnx"),
    "other keys": (decoder(num_key_value_heads=1000), "is not that of model.onnx"),
    "huge numbers": (decoder(num_key_value_heads=10**300), "no number of things"),
    "context is text": ({"model": {"context_length": "x"}}, "context_length is 'x'"),
    "negative context": ({"model": {"context_length": -1}}, "context_length is -1"),
    "vocabulary is a list": ({"model": {"vocab_size": [1]}}, "vocab_size is [1]"),
}


def merged(sound: Any, change: Any) -> Any:
    if isinstance(sound, dict) and isinstance(change, dict):
        return {**sound, **{key: merged(sound.get(key), value) for key, value in change.items()}}
    return change


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations(copied: Copy, refused: Refused, case: str) -> None:
    change, needle = CONFIGS[case]
    path = (folder := copied("onnx")) / "genai_config.json"
    path.write_text(change if isinstance(change, str) else json.dumps(merged(json.loads(path.read_text()), change)))
    refused("inspect", folder, code=3, needle=needle)
