"""Families outside the builder: traced, quantized, and loaded by both runtimes like the others."""

from __future__ import annotations

import builtins
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from lowrank_export.converter.core.errors import ResourceError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.exporters.onnx.check.selfcheck import kld
from lowrank_export.exporters.onnx.export import export_onnx
from lowrank_export.exporters.onnx.session import open_decoder
from lowrank_export.exporters.onnx.traced.traced_weights import store_codes, store_half
from lowrank_export.exporters.onnx.weights.quantize import BlockFormat, dequantize, quantize
from lowrank_export.exporters.onnx.weights.stored import StoredWeights
from lowrank_export.exporters.onnx.weights.types import OnnxOptions

TOKENS = np.random.default_rng(5).integers(2, 320, 60, dtype=np.int32)


def test_smollm3_without_a_rotary_embedding_in_its_fourth_block(tmp_path: Path, tiny: ModuleType) -> None:
    pytest.importorskip("onnxscript")
    model = tiny.save_factored(tmp_path / "in", "smollm3", rank=37, blocks=4)
    with torch.no_grad():
        reference = model(torch.from_numpy(TOKENS.astype(np.int64))[None]).logits[0].numpy()
    options = OnnxOptions(factors="all")
    export_onnx(tmp_path / "in", tmp_path / "out", quantization="fp32", options=options, progress=SilentProgress())
    decoder = open_decoder(tmp_path / "out", threads=1)
    first, cache = decoder.run(TOKENS[:50], decoder.empty_cache, keep_cache=True)
    last, _ = decoder.run(TOKENS[50:], cache, keep_cache=False)
    np.testing.assert_allclose(np.concatenate([first, last]), reference, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("factored", [True, False], ids=["factored", "dense"])
def test_opt(tmp_path: Path, tiny: ModuleType, factored: bool) -> None:
    """The export itself compares every window in both runtimes, GenAI's greedy tokens and its tokenizer."""
    pytest.importorskip("onnxscript")
    if factored:
        model = tiny.save_factored(tmp_path / "in", "opt", rank=37)
    else:
        model = tiny.save_dense(tmp_path / "in", "opt", tied=False)
    with torch.no_grad():
        reference = model(torch.from_numpy(TOKENS.astype(np.int64))[None]).logits[0].numpy()
    for quantization in ("fp32", "fp16", "int4-mix", "int8") if factored else ("fp32", "int8"):
        artifact = export_onnx(
            tmp_path / "in",
            tmp_path / quantization,
            quantization=quantization,
            options=OnnxOptions(factors="all"),
            progress=SilentProgress(),
        )
        decoder = open_decoder(tmp_path / quantization, threads=1)
        first, cache = decoder.run(TOKENS[:50], decoder.empty_cache, keep_cache=True)
        last, _ = decoder.run(TOKENS[50:], cache, keep_cache=False)
        logits = np.concatenate([first, last])
        if quantization == "fp32":
            np.testing.assert_allclose(logits, reference, atol=1e-4)
            several, _ = decoder.run(np.stack([TOKENS, TOKENS]), decoder.empty_cache, keep_cache=False)
            np.testing.assert_allclose(several, np.stack([reference, reference]), atol=1e-4)
        else:  # rounded weights; what the graph adds to them was compared by the export itself
            assert np.median(kld(reference, logits)) < {"fp16": 1e-5, "int4-mix": 0.5, "int8": 0.005}[quantization]
        assert artifact.facts["exporter"].startswith("transformers ")
        stored = onnx.load(str(tmp_path / quantization / "model.onnx"), load_external_data=False)
        assert str(Path(torch.__file__).parent) not in str(stored), "no paths of this machine"
    wide = [
        record for record in artifact.tensors if np.prod(record.shape) >= 320 * 80 and "positions" not in record.name
    ]
    assert len(wide) == (1 if factored else 2), "a tied embedding is stored once"
    assert all(record.type == "uint8" for record in wide)


def test_missing_onnxscript_is_one_line(tmp_path: Path, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "onnxscript":
            raise ModuleNotFoundError("No module named 'onnxscript'")
        return honest(name, *arguments, **options)

    tiny.save_dense(tmp_path / "in", "opt")
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr("transformers.exporters.utils.importlib.util.find_spec", lambda name, *_: None, raising=False)
    with pytest.raises(ResourceError, match="pip install onnxscript") as error:
        export_onnx(tmp_path / "in", tmp_path / "out", progress=SilentProgress())
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def traced_graph(tensors: dict[str, np.ndarray[Any, Any]]) -> Any:
    """Each form that a trace leaves: MatMul, Gemm with bias, a tied embedding looked up and multiplied with."""
    import onnx_ir as ir
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Gather", ["embed", "ids"], ["x"], name="look"),
        helper.make_node("MatMul", ["x", "a"], ["h"], name="down"),
        helper.make_node("Gemm", ["h", "b", "bias"], ["y"], name="up", transB=1),
        helper.make_node("Transpose", ["embed"], ["turned"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["y", "turned"], ["logits"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 50])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 20)]
    return ir.serde.deserialize_model(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def modules() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    return {
        "embed": torch.nn.Embedding(50, 40),  # rows that do not fill their last block
        "a": torch.nn.Linear(40, 24, bias=False),
        "b": torch.nn.Linear(24, 40),
    }


def run(model: Any, folder: Path, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    import onnx_ir as ir
    import onnxruntime

    ir.save(model, folder / "model.onnx")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"ids": ids})[0])


def tensors_of(parts: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    detached = {name: part.weight.detach().numpy() for name, part in parts.items()}
    return {**detached, "a": np.ascontiguousarray(detached["a"].T), "bias": parts["b"].bias.detach().numpy()}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
def test_codes_compute_what_they_stand_for(tmp_path: Path, bits: int, symmetric: bool) -> None:
    parts, format = modules(), BlockFormat(bits, 32, symmetric)
    encoded = {part: quantize(part.weight, format) for part in parts.values()}
    for part, matrix in encoded.items():
        part.weight.data = dequantize(matrix)
    tensors, ids = tensors_of(parts), np.array([3, 0, 49])
    expected = ((tensors["embed"][ids] @ tensors["a"]) @ tensors["b"].T + tensors["bias"]) @ tensors["embed"].T
    model = traced_graph(tensors)
    store_codes(model, StoredWeights(encoded, accuracy_level=0))
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("MatMulNBits") == 3 and kinds.count("GatherBlockQuantized") == 1
    assert not {"MatMul", "Gemm", "Gather", "Transpose"}.intersection(kinds)
    names = set(model.graph.initializers)
    assert len([name for name in names if name.endswith("qweight")]) == 3, "the tied matrix is stored once"
    assert not {"embed", "a", "b"} & names, "no float32 matrix is left"
    np.testing.assert_allclose(run(model, tmp_path, ids), expected, rtol=1e-4, atol=1e-4)


def test_half_is_stored_and_widened(tmp_path: Path) -> None:
    parts = modules()
    for part in parts.values():
        part.weight.data = part.weight.data.half().float()
    tensors, ids = tensors_of(parts), np.array([3, 0, 49])
    expected = ((tensors["embed"][ids] @ tensors["a"]) @ tensors["b"].T + tensors["bias"]) @ tensors["embed"].T
    model = traced_graph(tensors)
    store_half(model)
    stored = {name: value.const_value.dtype.name for name, value in model.graph.initializers.items()}
    assert stored == {"embed.half": "FLOAT16", "a.half": "FLOAT16", "b.half": "FLOAT16", "bias": "FLOAT"}
    np.testing.assert_allclose(run(model, tmp_path, ids), expected, rtol=1e-5, atol=1e-5)
