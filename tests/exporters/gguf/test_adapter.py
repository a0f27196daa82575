"""The adapter layout: what the two files hold, that they belong together, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize

from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import InputError, UsageError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.model.source import open_source
from lowrank_export.converter.storage.gguf_header import read_header
from lowrank_export.exporters.gguf.adapter import export_adapter
from lowrank_export.exporters.gguf.adapter_files import adapter_path, find_adapter
from lowrank_export.exporters.gguf.mixes import Quantization
from lowrank_export.exporters.gguf.names import interleave_rows
from lowrank_export.runtime_tests.artifacts import describe

RANK = 32


@pytest.fixture(scope="module")
def folders(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    tiny.save_dense(folder / "dense", "llama", tied=False)
    tiny.save_factored(folder / "factored", "llama", tied=False, rank=RANK)
    return folder


def export(folders: Path, out: Path, quantization: str = "q8_0", *, dense: bool = True, **options: Any) -> Any:
    model = open_source(str(folders / "dense"), SilentProgress()) if dense else None
    return export_adapter(
        folders / "factored", out, Quantization(quantization), dense=model, **{"progress": SilentProgress(), **options}
    )


def values(path: Path) -> dict[str, np.ndarray]:
    return {t.name: dequantize(np.array(t.data), t.tensor_type) for t in GGUFReader(path).tensors}


def weight(folder: Path, name: str) -> np.ndarray:
    found: np.ndarray = CheckpointReader(folder).tensor(f"model.layers.1.{name}.weight").numpy()
    return found


@pytest.mark.parametrize(("residual", "worst"), [("f32", 1e-6), ("q8_0", 0.01), ("q4_0", 0.2)])
@pytest.mark.parametrize("quantization", ["f32", "q8_0", "q4_0"])
def test_base_and_factors_make_the_dense_weight(
    folders: Path, tmp_path: Path, residual: str, worst: float, quantization: str
) -> None:
    """The residual makes up for the factors' rounding too: what is left is the residual's own rounding."""
    made = export(folders, tmp_path / "m.gguf", residual=residual, quantization=quantization)
    base, factors = values(made.path), values(adapter_path(made.path))
    for name, module, heads in (("self_attn.q_proj", "attn_q", 4), ("mlp.down_proj", "ffn_down", None)):
        dense = weight(folders / "dense", name)
        dense = dense if heads is None else interleave_rows(dense, heads)
        product = factors[f"blk.1.{module}.weight.lora_b"] @ factors[f"blk.1.{module}.weight.lora_a"]
        left = dense - product - base[f"blk.1.{module}.weight"]
        assert np.abs(left).max() < worst * np.abs(dense - product).max() + 1e-6


def test_without_residual_the_base_is_zero_and_small(folders: Path, tmp_path: Path) -> None:
    made = export(folders, tmp_path / "m.gguf", dense=False, quantization="f32")
    base, factors = GGUFReader(made.path), values(adapter_path(made.path))
    types = {t.name: t.tensor_type.name for t in base.tensors}
    assert types["blk.0.attn_q.weight"] == types["blk.0.ffn_down.weight"] == "Q4_0"  # rows of 64 and 160
    assert all(not t.data.any() for t in base.tensors if f"{t.name}.lora_a" in factors)
    up = factors["blk.1.ffn_up.weight.lora_b"] @ factors["blk.1.ffn_up.weight.lora_a"]
    left, right = (
        weight(folders / "factored", "mlp.up_proj.lowrank_u"),
        weight(folders / "factored", "mlp.up_proj.lowrank_v"),
    )
    np.testing.assert_allclose(up, left @ right, atol=1e-5)


def test_wide_rows_of_zeros_take_a_bit_and_an_eighth(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_factored(tmp_path / "m", "qwen2", rank=32, hidden_size=128, head_dim=32)
    made = export_adapter(tmp_path / "m", tmp_path / "m.gguf", Quantization("q8_0"), progress=SilentProgress())
    record = next(tensor for tensor in made.tensors if tensor.name == "blk.0.attn_q.weight")
    assert (record.type, record.bytes) == ("q1_0", 128 * 128 * 9 // 64)


def test_metadata(folders: Path, tmp_path: Path) -> None:
    made = export(folders, tmp_path / "m.gguf", residual="q5_0")
    keys = {name: field.contents() for name, field in GGUFReader(adapter_path(made.path)).fields.items()}
    assert (keys["general.type"], keys["adapter.type"], keys["general.architecture"]) == ("adapter", "lora", "llama")
    assert keys["adapter.lora.alpha"] == 0.0
    base = read_header(made.path).metadata
    assert (base["lowrank.layout"], base["lowrank.residual"]) == ("adapter", "q5_0")
    assert "lowrank.version" not in base  # stock libraries load it


@pytest.mark.parametrize("quantization", ["q8_0", "q4_k_m"])
@pytest.mark.parametrize("residual", ["zero", "q4_0", "q3_k"])
def test_described_as_it_was_made(folders: Path, tmp_path: Path, ggml: Path, residual: str, quantization: str) -> None:
    """Both files count; fallbacks of residuals (rows of 64 in 256-wide blocks) and of factors are named."""
    made = export(folders, tmp_path / "m.gguf", residual=residual, quantization=quantization)
    assert describe(made.path) == made
    assert made.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    wanted = {t.wanted for t in made.tensors if t.name == "blk.0.attn_q.weight"}
    assert wanted == ({"q3_k"} if residual == "q3_k" else {None})
    factor = next(t for t in made.tensors if t.name == "blk.0.attn_q.weight.lora_a")
    assert factor.wanted == ("q6_k" if quantization == "q4_k_m" else None)


def test_adapter_alone_is_described(folders: Path, tmp_path: Path) -> None:
    made = export(folders, tmp_path / "m.gguf")
    found = describe(adapter_path(made.path))
    assert (found.layout, found.bytes) == ("adapter", adapter_path(made.path).stat().st_size)
    assert {tensor.name.rpartition(".")[2] for tensor in found.tensors} == {"lora_a", "lora_b"}


def missing(base: Path) -> None:
    adapter_path(base).unlink()


def another(base: Path) -> None:
    adapter_path(base).write_bytes(adapter_path(base).read_bytes() + b"\0")


@pytest.mark.parametrize(("change", "message"), [(missing, "is not beside it"), (another, "another m.lora.gguf")])
def test_base_without_its_adapter(folders: Path, tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    base = export(folders, tmp_path / "m.gguf").path
    assert find_adapter(base, read_header(base)) == adapter_path(base)
    change(base)
    with pytest.raises(InputError, match=message):
        describe(base)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"residual": "q9"}, "unknown residual type 'q9'"),
        ({"dense": False, "residual": "q4_0"}, "give --dense"),
        ({"quantization": "q9"}, "unknown GGUF type"),
    ],
)
def test_refused(folders: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export(folders, tmp_path / "m.gguf", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["m.gguf", "m.lora.gguf"])
def test_neither_file_is_overwritten(folders: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=f"{name}: already exists"):
        export(folders, tmp_path / "m.gguf")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    made = export(folders, tmp_path / "m.gguf", force=True)
    assert describe(made.path) == made


def test_pivot_rows_are_refused(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_factored(tmp_path / "m", "llama", rank=20, layout="pivot")
    with pytest.raises(InputError, match="layout pivot; an adapter holds two factors"):
        export_adapter(tmp_path / "m", tmp_path / "m.gguf", Quantization("q8_0"), progress=SilentProgress())


def test_another_model_is_refused(folders: Path, tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_factored(tmp_path / "factored", "llama", tied=False, rank=RANK)
    (tmp_path / "factored" / "calibration.json").write_text(json.dumps({"source_sha256": "0" * 64}))
    source = open_source(str(folders / "dense"), SilentProgress())
    with pytest.raises(InputError, match="not the model that"):
        export_adapter(
            tmp_path / "factored", tmp_path / "m.gguf", Quantization("q8_0"), dense=source, progress=SilentProgress()
        )
    tiny.save_dense(tmp_path / "wider", "llama", tied=False, intermediate_size=192)
    source = open_source(str(tmp_path / "wider"), SilentProgress())
    with pytest.raises(InputError, match=r"has shape \(192, 64\), not \(160, 64\)|has shape \(64, 192\)"):
        export_adapter(
            folders / "factored", tmp_path / "m.gguf", Quantization("q8_0"), dense=source, progress=SilentProgress()
        )


def test_factors_are_those_of_the_checkpoint(folders: Path, tmp_path: Path) -> None:
    made = export(folders, tmp_path / "m.gguf", quantization="f32")
    found = values(adapter_path(made.path))
    u = weight(folders / "factored", "self_attn.k_proj.lowrank_u")
    v = weight(folders / "factored", "self_attn.k_proj.lowrank_v")
    np.testing.assert_array_equal(found["blk.1.attn_k.weight.lora_b"], interleave_rows(u, 2))
    np.testing.assert_array_equal(found["blk.1.attn_k.weight.lora_a"], v)
    assert torch.tensor(v).shape == (RANK, 64)
