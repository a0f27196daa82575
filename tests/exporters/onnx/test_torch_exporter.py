"""Families outside the builder: traced, quantised, and loaded by both runtimes like the others."""

from __future__ import annotations

import builtins
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from lowrank_export.converter.errors import ResourceError
from lowrank_export.converter.progress import SilentProgress
from lowrank_export.exporters.onnx.export import export_onnx
from lowrank_export.exporters.onnx.selfcheck import kld
from lowrank_export.exporters.onnx.session import open_decoder
from lowrank_export.exporters.onnx.traced_quantise import quantise_traced

OPT: dict[str, Any] = {"ffn_dim": 160, "hidden_size": 80, "word_embed_proj_dim": 80, "pad_token_id": 1}
TOKENS = np.random.default_rng(5).integers(2, 320, 60, dtype=np.int32)


@pytest.mark.slow
@pytest.mark.parametrize("factored", [True, False], ids=["factored", "dense"])
def test_opt(tmp_path: Path, tiny: ModuleType, factored: bool) -> None:
    """The export itself compares every window in both runtimes, GenAI's greedy tokens and its tokenizer."""
    pytest.importorskip("onnxscript")
    if factored:
        model = tiny.save_factored(tmp_path / "in", "opt", rank=37, **OPT)
    else:
        model = tiny.save_dense(tmp_path / "in", "opt", tied=False, **OPT)
    with torch.no_grad():
        reference = model(torch.from_numpy(TOKENS.astype(np.int64))[None]).logits[0].numpy()
    for quantisation in ("fp32", "int8"):
        artifact = export_onnx(
            tmp_path / "in", tmp_path / quantisation, quantisation=quantisation, progress=SilentProgress()
        )
        decoder = open_decoder(tmp_path / quantisation, threads=1)
        first, cache = decoder.run(TOKENS[:50], decoder.empty_cache, keep_cache=True)
        last, _ = decoder.run(TOKENS[50:], cache, keep_cache=False)
        logits = np.concatenate([first, last])
        if quantisation == "fp32":
            np.testing.assert_allclose(logits, reference, atol=1e-4)
        else:
            assert np.median(kld(reference, logits)) < 0.005
        assert artifact.facts["exporter"].startswith("transformers ")
        stored = onnx.load(str(tmp_path / quantisation / "model.onnx"), load_external_data=False)
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

    tiny.save_dense(tmp_path / "in", "opt", **OPT)
    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr("transformers.exporters.utils.importlib.util.find_spec", lambda name, *_: None, raising=False)
    with pytest.raises(ResourceError, match="pip install onnxscript") as error:
        export_onnx(tmp_path / "in", tmp_path / "out", progress=SilentProgress())
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_products_and_lookup_become_8_bit_and_compute_the_same(tmp_path: Path) -> None:
    """Each form that a trace leaves: MatMul, transposed MatMul, Gemm with bias, a tied embedding of odd width."""
    import onnx_ir as ir
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    table = rng.standard_normal((50, 40)).astype(np.float32)
    tensors = {
        "embed_tokens.weight": table,
        "a": rng.standard_normal((40, 24)).astype(np.float32),
        "b": rng.standard_normal((40, 24)).astype(np.float32),
        "bias": rng.standard_normal(40).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["embed_tokens.weight", "ids"], ["x"], name="look"),
        helper.make_node("MatMul", ["x", "a"], ["h"], name="down"),
        helper.make_node("Gemm", ["h", "b", "bias"], ["y"], name="up", transB=1),
        helper.make_node("Transpose", ["embed_tokens.weight"], ["turned"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["y", "turned"], ["logits"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 50])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = ir.serde.deserialize_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    )
    quantise_traced(model)
    ir.save(model, tmp_path / "model.onnx")
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("MatMulNBits") == 3 and "GatherBlockQuantized" in kinds
    assert not {"MatMul", "Gemm", "Gather", "Transpose"}.intersection(kinds)
    floats = [name for name, value in model.graph.initializers.items() if value.dtype == ir.DataType.FLOAT]
    assert all(name.endswith("scales") or name == "bias" for name in floats), "no float32 matrix is left"
    ids = np.array([3, 0, 49])
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"ids": ids})
    expected = ((table[ids] @ tensors["a"]) @ tensors["b"].T + tensors["bias"]) @ table.T
    assert np.abs(logits - expected).max() < 0.05 * expected.std()
