"""Norms written out: valid ONNX, the same numbers, and one operator again once ONNX Runtime has loaded them."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.exporters.onnx.builder.plain_norms import FUSED, write_out_norms
from lowrank_export.exporters.onnx.export import export_onnx


def loaded_operators(folder: Path, scratch: Path) -> list[str]:
    """Operators of the graph as ONNX Runtime runs it."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(scratch), 4
    onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(str(scratch), load_external_data=False).graph.node]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_file_is_valid_onnx_and_fused_when_loaded(tmp_path: Path, tiny: ModuleType, family: str) -> None:
    model = tiny.save_dense(tmp_path / "in", family)
    export_onnx(tmp_path / "in", tmp_path / "out", progress=SilentProgress())
    path = tmp_path / "out" / "model.onnx"
    onnx.checker.check_model(str(path))
    assert FUSED not in {node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node}
    norms = sum(type(module).__name__.endswith("RMSNorm") for module in model.modules())
    operators = loaded_operators(tmp_path / "out", tmp_path / "loaded.onnx")
    assert sum(kind.endswith(FUSED) for kind in operators) == norms and "Sqrt" not in operators


def test_two_norms_and_their_constants() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 3, 8)).astype(np.float32)
    weights = random.standard_normal((2, 8)).astype(np.float32)
    nodes = [
        helper.make_node(FUSED, ["x", "w0"], ["y"], "first", epsilon=1e-5, axis=-1, stash_type=1),
        helper.make_node(FUSED, ["y", "w1"], ["z"], "second", epsilon=0.5, axis=-1, stash_type=1),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3, 8]) for name in "xz"]
    stored = [numpy_helper.from_array(weight, f"w{index}") for index, weight in enumerate(weights)]
    graph = helper.make_graph(nodes, "norms", values[:1], values[1:], stored)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10))
    write_out_norms(model)
    written = ir.to_proto(model)
    onnx.checker.check_model(written)
    assert len(written.graph.node) == 12 and len(written.graph.initializer) == 2 + 4, "exponent and axis are shared"
    session = onnxruntime.InferenceSession(written.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = x
    for weight, epsilon in zip(weights, (1e-5, 0.5), strict=True):
        expected = weight * expected / np.sqrt((expected**2).mean(axis=-1, keepdims=True) + epsilon)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-5)
