"""What else llama.cpp does with weights works on factored ones: LoRA adapters and its own quantizer."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.storage.gguf_header import read_header
from lowrank_export.exporters.export import export
from lowrank_export.exporters.gguf.mixes import MIXES, Quantization
from lowrank_export.exporters.gguf.types import TYPES
from lowrank_export.exporters.gguf.writer import export_gguf
from lowrank_export.exporters.registry import requested
from lowrank_export.runtime_tests.backends.llama_cpp import LlamaCppBackend

TOKENS = np.random.default_rng(0).integers(0, 320, 48).astype(np.int32)
Q8_0, Q4_K_M = 7, 15

pytestmark = pytest.mark.usefixtures("llama_cpp_runtime")


@pytest.fixture(scope="module", params=["two-factor", "pivot"])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def factored(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory, layout: str) -> Path:
    folder = tmp_path_factory.mktemp("features")
    tiny.save_factored(folder / "model", "qwen2", rank=None if layout == "two-factor" else 31, layout=layout)
    return export_gguf(folder / "model", folder / "m.gguf", Quantization("f32"), progress=SilentProgress()).path


@pytest.fixture
def backend(factored: Path) -> Iterator[LlamaCppBackend]:
    opened = LlamaCppBackend(factored, n_ctx=64)
    yield opened
    opened.close()


def write_adapter(path: Path, weight: str, a: np.ndarray, b: np.ndarray) -> bytes:
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "qwen2")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 0.0)
    writer.add_tensor(f"{weight}.lora_a", a)
    writer.add_tensor(f"{weight}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path).encode()


def factors(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    a = 0.1 * rng.standard_normal((4, columns))
    return a.astype(np.float32), (0.5 * rng.standard_normal((rows, 4))).astype(np.float32)


def load_adapter(backend: LlamaCppBackend, path: bytes) -> Any:
    return backend._api.llama_adapter_lora_init(backend._model, path)


@pytest.mark.parametrize(("module", "weight"), [("self_attn.q_proj", "attn_q"), ("mlp.up_proj", "ffn_up")])
def test_adapter_of_the_dense_weight(
    backend: LlamaCppBackend, tiny: ModuleType, tmp_path: Path, layout: str, module: str, weight: str
) -> None:
    """An adapter trained for W applies to the product as a whole; with pivot rows, where W's rows are in W's order."""
    model, _ = tiny.factored("qwen2", rank=None if layout == "two-factor" else 31)
    linear = model.model.layers[1].get_submodule(module)
    a, b = factors(linear.out_features, linear.in_features)
    adapter = load_adapter(backend, write_adapter(tmp_path / "a", f"blk.1.{weight}.weight", a, b))
    if layout == "pivot" and weight == "ffn_up":
        assert not adapter
        assert "in an order of their own" in backend._last_error()
        return
    assert adapter
    linear.register_forward_hook(lambda _, x, y: y + x[0] @ torch.tensor(b @ a).T)
    with torch.no_grad():
        expected = model(torch.tensor(TOKENS[None].astype(np.int64))).logits[0].numpy()
    api: Any = backend._api
    one = (api.llama_adapter_lora_p_ctypes * 1)(adapter)
    assert api.llama_set_adapters_lora(backend._context, one, 1, (ctypes.c_float * 1)(1.0)) == 0
    np.testing.assert_allclose(backend.window_logits(TOKENS), expected, atol=1e-4)


def test_adapter_of_a_factor_is_refused(
    backend: LlamaCppBackend, tiny: ModuleType, tmp_path: Path, layout: str
) -> None:
    a, b = factors(tiny.INTERMEDIATE, tiny.HIDDEN)
    factor = "lowrank_u" if layout == "two-factor" else "lowrank_p"
    assert not load_adapter(backend, write_adapter(tmp_path / "a", f"blk.1.ffn_up.{factor}.weight", a, b))
    assert "adapts a factor" in backend._last_error()


def quantize(api: Any, source: Path, out: Path, file_type: int) -> None:
    options = api.llama_model_quantize_default_params()
    options.ftype, options.nthread = file_type, 1
    assert api.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(options)) == 0


def stored(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.type for tensor in read_header(path).tensors}


PLAIN = ("f16", "bf16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_1", "q4_0")
RAISED = {"q4_k": "q5_k", "iq4_nl": "q5_k", "iq4_xs": "q5_k", "q2_k": "q3_k"}


@pytest.fixture(scope="module")
def wide(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory, layout: str) -> Path:
    """A folder with "model", whose rows every type fits, and "f32.gguf"."""
    folder = tmp_path_factory.mktemp("wide")
    sizes = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "num_key_value_heads": 4, "blocks": 4}
    rank = 256 if layout == "two-factor" else 128
    tiny.save_factored(folder / "model", "llama", rank=rank, layout=layout, **sizes)
    export(folder / "model", folder / "f32.gguf", requested("gguf", "f32"))
    return folder


@pytest.mark.parametrize("name", [n for n, mix in MIXES.items() if n != "f32" and not TYPES[mix.base].importance])
def test_types_that_the_own_quantizer_gives(
    backend: LlamaCppBackend, wide: Path, tmp_path: Path, layout: str, name: str
) -> None:
    """As docs/gguf.md says: plain types as an export gives them; a mix its base type, raised for some of ffn_down."""
    source = wide / "f32.gguf"
    quantize(backend._api, source, tmp_path / "q.gguf", MIXES[name].file_type)
    found, before = stored(tmp_path / "q.gguf"), stored(source)
    assert found.keys() == before.keys()
    assert all(found[tensor] == "i32" for tensor in before if tensor.endswith("lowrank_perm"))
    if name in PLAIN:
        made = export(wide / "model", tmp_path / "o.gguf", requested("gguf", name))
        assert found == {tensor.name: tensor.type for tensor in made.tensors}
        return
    base = MIXES[name].base
    for tensor in (tensor for tensor in before if ".lowrank_" in tensor and tensor.endswith(".weight")):
        if tensor.endswith("lowrank_c.weight"):  # rows of 128 do not fit the 256-wide blocks
            assert TYPES[found[tensor]].bits >= TYPES[base].bits, tensor
        elif ".ffn_down." in tensor:
            assert found[tensor] in (base, RAISED.get(base, base), "q6_k", "q4_k"), tensor
        else:
            assert found[tensor] == base, tensor


@pytest.mark.parametrize(("file_type", "limit"), [(Q8_0, 0.2), (Q4_K_M, 1.0)])
def test_own_quantizer(backend: LlamaCppBackend, factored: Path, tmp_path: Path, file_type: int, limit: float) -> None:
    out = tmp_path / "q.gguf"
    quantize(backend._api, factored, out, file_type)
    quantized = LlamaCppBackend(out, n_ctx=64)
    difference = np.abs(quantized.window_logits(TOKENS) - backend.window_logits(TOKENS)).mean()
    quantized.close()
    assert out.stat().st_size < 0.5 * factored.stat().st_size
    assert difference < limit
