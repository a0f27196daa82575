"""Models beyond protobuf's 2 GB: weights lie outside, at 64-bit offsets. A sparse file stands for the bytes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.exporters.onnx.check import graph_check
from lowrank_export.exporters.onnx.contents import DATA_FILE, INLINE_BYTES, MODEL_FILE, model_bytes
from lowrank_export.exporters.onnx.export import export_onnx
from lowrank_export.exporters.onnx.session import checked_model
from lowrank_export.exporters.onnx.weights.sizes import predict_bytes

OFFSET = 5 * 2**30  # beyond what 32 bits can say


def test_every_large_tensor_lies_outside(tmp_path: Path, tiny: ModuleType) -> None:
    tiny.save_dense(tmp_path / "in", "llama", blocks=1)
    export_onnx(tmp_path / "in", tmp_path / "out", progress=SilentProgress())
    model = onnx.load(str(tmp_path / "out" / MODEL_FILE), load_external_data=False)
    inline = [tensor for tensor in model.graph.initializer if not tensor.external_data]
    assert all(len(tensor.raw_data) < INLINE_BYTES for tensor in inline)
    assert sum(len(tensor.raw_data) for tensor in inline) < 20 * INLINE_BYTES, "norms and constants, whatever the size"


def test_data_beyond_4_gb_is_found_checked_and_read(tmp_path: Path) -> None:
    values = np.arange(4096, dtype=np.float32)
    with (tmp_path / DATA_FILE).open("wb") as file:
        file.seek(OFFSET)
        file.write(values.tobytes())
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4096], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", DATA_FILE), ("offset", OFFSET), ("length", values.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4096])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4096])],
        [tensor],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / MODEL_FILE).write_bytes(model.SerializeToString())
    graph_check.check_graph(tmp_path, (), 0)
    session = onnxruntime.InferenceSession(str(checked_model(tmp_path)), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": np.ones(4096, dtype=np.float32)})
    np.testing.assert_array_equal(result, values + 1)
    assert model_bytes(tmp_path) > OFFSET
    with (tmp_path / DATA_FILE).open("r+b") as file:
        file.truncate(OFFSET + values.nbytes - 1)
    with pytest.raises(InputError, match="truncated"):
        checked_model(tmp_path)


def test_size_of_a_large_model_is_foretold_from_shapes() -> None:
    shapes = {f"model.layers.{i}.mlp.up_proj.weight": (8192, 3072) for i in range(64)}
    assert predict_bytes(shapes, "fp32", tied=False) > 6 * 2**30
    assert predict_bytes(shapes, "int8", tied=False) == pytest.approx(64 * 8192 * 3072 * 9 / 8, rel=0.001)


def test_a_graph_too_large_for_protobuf_is_refused(
    tmp_path: Path, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save_dense(tmp_path / "in", "llama", blocks=1)
    monkeypatch.setattr(graph_check, "LARGEST_GRAPH", 100)
    with pytest.raises(InputError, match="protobuf holds 2 GB"):
        export_onnx(tmp_path / "in", tmp_path / "out", progress=SilentProgress())
    assert not (tmp_path / "out").exists()
