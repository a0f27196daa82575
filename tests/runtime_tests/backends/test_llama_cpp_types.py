"""Every storage type and mix, from export to logits; the types of a dense file are those of llama.cpp's quantizer."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.exporters.export import export
from lowrank_export.exporters.gguf.imatrix import read_imatrix
from lowrank_export.exporters.gguf.importance import export_imatrix
from lowrank_export.exporters.gguf.mixes import MIXES
from lowrank_export.exporters.gguf.rounding_choice import Rounding
from lowrank_export.exporters.gguf.types import TYPES
from lowrank_export.exporters.llamacpp.runtime import import_llama_cpp
from lowrank_export.exporters.registry import requested
from lowrank_export.runtime_tests.artifacts import describe
from lowrank_export.runtime_tests.backends.llama_cpp import LlamaCppBackend

# 256-wide rows throughout, which every type fits
WIDE = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_key_value_heads": 4}
TOKENS = np.random.default_rng(0).integers(0, 320, 48).astype(np.int32)
LIMITS = {
    "f32": 1e-9,
    "f16": 1e-5,
    "bf16": 2e-4,
    "q8_0": 1.5e-3,
    "q6_k": 0.008,
    "q5_k_m": 0.012,
    "q5_k": 0.025,
    "q5_1": 0.025,
    "q5_0": 0.035,
    "q4_k_m": 0.04,
    "q4_k_s": 0.04,
    "q4_k": 0.08,
    "q4_1": 0.1,
    "q4_0": 0.12,
    "iq4_nl": 0.1,
    "iq4_xs": 0.1,
    "q3_k_m": 0.15,
    "q3_k": 0.3,
    "q2_k": 0.8,
    "iq3_s": 0.2,
    "iq3_xxs": 0.3,
    "iq2_s": 0.8,
    "iq2_xs": 1.0,
    "iq2_xxs": 1.3,
}
"""Largest mean KL divergence, in nats, of a tiny random model whose factors have full rank."""

IMATRIX = "imatrix.gguf"

pytestmark = pytest.mark.usefixtures("llama_cpp_runtime")


def torch_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(TOKENS[None].astype(np.int64))).logits[0].float().numpy()


def divergence(reference: np.ndarray, path: Path) -> float:
    """Mean KL divergence of a file's logits in nats."""
    backend = LlamaCppBackend(path, n_ctx=64)
    try:
        logits = backend.window_logits(TOKENS)
    finally:
        backend.close()
    p, q = (torch.log_softmax(torch.tensor(x).double(), -1) for x in (reference, logits))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.fixture(scope="module", params=["two-factor", "pivot", "dense"])
def model(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """Layout, checkpoint and its logits in torch."""
    folder = tmp_path_factory.mktemp("model")
    if request.param == "dense":
        built = tiny.save_dense(folder, "qwen2", **WIDE)
    else:
        rank = None if request.param == "two-factor" else 128
        built = tiny.save_factored(folder, "qwen2", rank=rank, layout=request.param, **WIDE)
    measured_importance(tiny, folder)
    return request.param, folder, torch_logits(built)


def measured_importance(tiny: ModuleType, checkpoint: Path) -> None:
    """An importance matrix beside the checkpoint's weights."""
    (checkpoint / "notes.txt").write_text(tiny.TEXT, encoding="utf-8")
    (checkpoint / "calibration.json").write_text('{"windows": 8, "window_length": 64}', encoding="utf-8")
    text = str(checkpoint / "notes.txt")
    export_imatrix(checkpoint, checkpoint / IMATRIX, text=text, force=True, progress=SilentProgress())


@pytest.mark.parametrize("quantization", MIXES)
def test_logits_of_every_type(model: Any, tmp_path: Path, quantization: str) -> None:
    layout, checkpoint, reference = model
    wants = TYPES[MIXES[quantization].base].importance
    rounding = Rounding(imatrix=checkpoint / IMATRIX) if wants else Rounding()
    made = export(checkpoint, tmp_path / "m.gguf", requested("gguf", quantization, rounding=rounding))
    assert describe(made.path) == made
    base = {tensor.type for tensor in made.tensors if ".ffn_up." in tensor.name and tensor.name.endswith("weight")}
    if layout != "pivot":  # whose C has rows of 128
        assert base == {MIXES[quantization].base}
    assert divergence(reference, made.path) < LIMITS[quantization] * (4 if layout == "pivot" else 1)


@pytest.mark.parametrize("quantization", ["q4_k_m", "iq4_xs", "q2_k"])
def test_rows_that_do_not_fit_run_in_their_fallback(tiny: ModuleType, tmp_path: Path, quantization: str) -> None:
    built = tiny.save_factored(tmp_path / "model", "llama", rank=32)
    made = export(tmp_path / "model", tmp_path / "m.gguf", requested("gguf", quantization))
    stands_in = {"q4_k_m": {"q5_0", "q8_0"}, "iq4_xs": {"iq4_nl", "q8_0"}, "q2_k": {"iq4_nl", "q8_0"}}[quantization]
    assert {tensor.type for tensor in made.tensors} == {*stands_in, "f32"}
    assert divergence(torch_logits(built), made.path) < 0.1


@pytest.mark.parametrize("quantization", ["q4_0", "q4_k", "iq3_s"])
def test_aware_files_run(model: Any, tmp_path: Path, quantization: str) -> None:
    """Random models have little for it to win on; that it wins is shown in test_aware.py."""
    layout, checkpoint, reference = model
    rounding = Rounding("aware", calibration=str(checkpoint / "notes.txt"))
    made = export(checkpoint, tmp_path / "m.gguf", requested("gguf", quantization, rounding=rounding))
    assert describe(made.path) == made
    assert divergence(reference, made.path) < 2 * LIMITS[quantization] * (4 if layout == "pivot" else 1)


def quantized_by_llama_cpp(
    source: Path, target: Path, file_type: int, importance: dict[str, np.ndarray] | None = None
) -> None:
    """With an importance, every matrix in the type itself."""
    api = import_llama_cpp().llama_cpp
    params = api.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, 1
    if importance is not None:
        floats = ctypes.POINTER(ctypes.c_float)
        entries = [(name.encode(), values.ctypes.data_as(floats), values.size) for name, values in importance.items()]
        params.imatrix = (api.llama_model_imatrix_data * (len(entries) + 1))(*entries)  # ends with a nameless one
        params.pure = True
    assert api.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0


@pytest.mark.parametrize("tied", [True, False])
def test_dense_files_have_the_types_of_llama_cpp(tiny: ModuleType, tmp_path: Path, tied: bool) -> None:
    """Tensor for tensor, and byte for byte."""
    sizes = {"hidden_size": 256, "intermediate_size": 320, "head_dim": 64}
    tiny.save_dense(tmp_path / "model", "llama", tied=tied, blocks=17, **sizes)
    source = export(tmp_path / "model", tmp_path / "f32.gguf", requested("gguf", "f32")).path
    for quantization in ("q4_k_m", "q5_k_m", "q4_k_s", "q3_k_m", "q4_0", "q5_1", "q6_k"):
        made = export(tmp_path / "model", tmp_path / f"{quantization}.gguf", requested("gguf", quantization))
        quantized_by_llama_cpp(source, tmp_path / "theirs.gguf", MIXES[quantization].file_type)
        ours, theirs = ({t.name: t for t in GGUFReader(path).tensors} for path in (made.path, tmp_path / "theirs.gguf"))
        types = {name: (tensor.tensor_type.name, theirs[name].tensor_type.name) for name, tensor in ours.items()}
        assert {name: pair for name, pair in types.items() if pair[0] != pair[1]} == {}, quantization
        for name, tensor in ours.items():
            np.testing.assert_array_equal(tensor.data, theirs[name].data, err_msg=f"{quantization} {name}")


@pytest.fixture(scope="module")
def llama(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model with an importance matrix, and "f32.gguf" beside its weights."""
    folder = tmp_path_factory.mktemp("llama")
    tiny.save_dense(folder, "llama", **WIDE)
    measured_importance(tiny, folder)
    export(folder, folder / "f32.gguf", requested("gguf", "f32"))
    return folder


@pytest.mark.parametrize("quantization", ["q4_0", "q5_1", "iq4_nl", "q4_k", "q6_k", "iq3_s"])
def test_an_importance_matrix_gives_the_bytes_of_llama_cpp(llama: Path, tmp_path: Path, quantization: str) -> None:
    imatrix = llama / IMATRIX
    made = export(llama, tmp_path / "ours.gguf", requested("gguf", quantization, rounding=Rounding(imatrix=imatrix)))
    file_type = MIXES[quantization].file_type
    quantized_by_llama_cpp(llama / "f32.gguf", tmp_path / "theirs.gguf", file_type, read_imatrix(imatrix))
    ours, theirs = ({t.name: t for t in GGUFReader(path).tensors} for path in (made.path, tmp_path / "theirs.gguf"))
    matrices = [name for name in ours if name.startswith("blk.") and len(ours[name].shape) > 1]
    assert len(matrices) == 14
    for name in matrices:
        np.testing.assert_array_equal(ours[name].data, theirs[name].data, err_msg=name)
