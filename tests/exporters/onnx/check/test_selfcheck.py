"""A damaged export is caught, whatever was damaged: each case is a mistake an exporter is known to make in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.exporters.onnx import export as export_module
from lowrank_export.exporters.onnx.check import genai_check
from lowrank_export.exporters.onnx.check.check_windows import Reference, reference_of
from lowrank_export.exporters.onnx.check.selfcheck import check_export, tolerance
from lowrank_export.exporters.onnx.export import export_onnx
from lowrank_export.exporters.onnx.weights.types import OnnxOptions

WINDOW = 64
Change = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> tuple[Path, Path, Reference]:
    """A checkpoint of Gemma 2, which has something of everything, its fp32 export, and torch's results."""
    folder = tmp_path_factory.mktemp("selfcheck")
    options = {
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 2.0,
        "attention_bias": True,
    }
    model = tiny.save_factored(folder / "in", "gemma2", rank=37, **options)
    export_onnx(folder / "in", folder / "out", options=OnnxOptions(factors="all"), progress=SilentProgress())
    return folder / "in", folder / "out", reference_of(model, folder / "in")


def attention(model: onnx.ModelProto, block: int) -> onnx.NodeProto:
    return [node for node in model.graph.node if node.op_type == "GroupQueryAttention"][block]


def attribute(name: str, value: Any, block: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        (found,) = (item for item in attention(model, block).attribute if item.name == name)
        found.CopyFrom(onnx.helper.make_attribute(name, value))

    return change


def scale_tensor(name: str, factor: float) -> Change:
    """Change a small tensor, which lies in the graph itself."""

    def change(model: onnx.ModelProto) -> None:
        (found,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        values = numpy_helper.to_array(found) * np.float32(factor)
        found.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))

    return change


def skip_node(op_type: str, position: int) -> Change:
    """Remove a node that has a mate, and is no part of a norm: who reads its output reads its first input."""

    def change(model: onnx.ModelProto) -> None:
        alike = [node for node in model.graph.node if node.op_type == op_type]
        node = [node for node in alike if not any(name.startswith("norm.") for name in node.input)][position]
        for other in model.graph.node:
            other.input[:] = [node.input[0] if name == node.output[0] else name for name in other.input]
        model.graph.node.remove(node)

    return change


DAMAGES: dict[str, tuple[Change, str]] = {
    "a block without its sliding window": (
        attribute("local_window_size", -1, 0),
        "block 0 has window -1 instead of 64",
    ),
    "a window where there is none": (attribute("local_window_size", 64, 1), "block 1 has window 64 instead of -1"),
    "the default scale of attention": (attribute("scale", 0.25, 1), r"block 1 has scale 0\.25 instead of 0\.204"),
    "no softcap of attention": (attribute("softcap", 0.0, 0), r"softcap 0\.0 instead of 2\.0"),
    "embeddings without their scale": (skip_node("Mul", 0), "does not compute what the torch model computes"),
    "no softcap of logits": (skip_node("Tanh", -1), "does not compute what the torch model computes"),
    "a missing bias": (skip_node("Add", 0), "does not compute what the torch model computes"),
    "a norm without its offset": (
        scale_tensor("model.layers.1.input_layernorm.weight", 0.5),
        "does not compute what the torch model computes",
    ),
    "an output that nothing computes": (lambda model: model.graph.output.add(name="nowhere"), "not a valid ONNX model"),
}


def damaged(tmp_path: Path, whole: Path, change: Change) -> Path:
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder)
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def test_an_honest_export_passes(exported: tuple[Path, Path, Reference]) -> None:
    _, folder, reference = exported
    assert 0 < check_export(folder, reference, tolerance(codes=False)) < 1e-4
    assert len(reference.windows) == 4 and len(reference.windows[-1]) > WINDOW, (
        "one window is longer than the sliding one"
    )


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_caught(tmp_path: Path, exported: tuple[Path, Path, Reference], damage: str) -> None:
    _, folder, reference = exported
    change, message = DAMAGES[damage]
    with pytest.raises(InputError, match=message) as error:
        check_export(damaged(tmp_path, folder, change), reference, tolerance(codes=False))
    assert "\n" not in str(error.value)


def test_tables_that_end_too_early(tmp_path: Path, exported: tuple[Path, Path, Reference]) -> None:
    _, folder, reference = exported
    longer = Reference(**{**reference.__dict__, "context": reference.context + 1})
    with pytest.raises(InputError, match=f"rotary angles for {reference.context} positions"):
        check_export(folder, longer, tolerance(codes=False))


def test_tokenizer_of_another_model_in_the_folder(tmp_path: Path, exported: tuple[Path, Path, Reference]) -> None:
    _, folder, reference = exported
    shutil.copytree(folder, tmp_path / "out")
    path = tmp_path / "out" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["merges"] = content["model"]["merges"][:3]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match="tokenizer reads 'The lighthouse") as error:
        check_export(tmp_path / "out", reference, tolerance(codes=False))
    assert "\n" not in str(error.value)


def test_genai_that_generates_something_else(
    exported: tuple[Path, Path, Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder, reference = exported
    honest = genai_check._greedy
    monkeypatch.setattr(genai_check, "_greedy", lambda *arguments: [(token + 1) % 320 for token in honest(*arguments)])
    with pytest.raises(InputError, match=r"GenAI generates .* but ONNX Runtime prefers"):
        check_export(folder, reference, tolerance(codes=False))


def test_genai_that_cannot_load(tmp_path: Path, exported: tuple[Path, Path, Reference]) -> None:
    _, folder, reference = exported
    shutil.copytree(folder, tmp_path / "out")
    path = tmp_path / "out" / "genai_config.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"gemma2"', '"no such family"'), encoding="utf-8")
    with pytest.raises(InputError, match="ONNX Runtime GenAI cannot run it") as error:
        check_export(tmp_path / "out", reference, tolerance(codes=False))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("quantization", ["fp32", "int8"])
def test_wrong_result_is_not_delivered(
    tmp_path: Path, exported: tuple[Path, Path, Reference], monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    checkpoint, _, reference = exported
    swapped = tuple(logits[:, ::-1] for logits in reference.logits)
    wrong = Reference(**{**reference.__dict__, "logits": swapped})
    monkeypatch.setattr(export_module, "reference_of", lambda *_: wrong)
    with pytest.raises(InputError, match="does not compute what the torch model computes"):
        export_onnx(checkpoint, tmp_path / "out", quantization=quantization, progress=SilentProgress())
    assert list(tmp_path.iterdir()) == []
