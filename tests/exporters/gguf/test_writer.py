"""The file: what is in it, what is refused, and that nothing is left behind when writing fails."""

from __future__ import annotations

import errno
import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import InputError, ResourceError, UsageError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.model.loading import load
from lowrank_export.exporters.gguf import file, writer
from lowrank_export.exporters.gguf.mixes import MIXES, Quantization, predict_bytes
from lowrank_export.exporters.gguf.names import interleave_rows
from lowrank_export.exporters.gguf.writer import export_gguf
from lowrank_export.exporters.llamacpp import runtime


class Notes(SilentProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


def export(source: Path, out: Path, quantization: str = "f16", **options: Any) -> Any:
    types = {name: options.pop(name) for name in ("embedding", "head") if name in options}
    return export_gguf(source, out, Quantization(quantization, **types), **{"progress": SilentProgress(), **options})


def values(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}


def metadata(path: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in GGUFReader(path).fields.items()}


@pytest.fixture(scope="module")
def factored(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("factored")
    tiny.save_factored(path, "llama", rank=20)
    (path / "recipe.yaml").write_text("method: svd\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def dense(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dense")
    tiny.save_dense(path, "llama", tied=False)
    return path


def test_native_layout(factored: Path, tmp_path: Path) -> None:
    artifact = export(factored, tmp_path / "m.gguf", quantization="f32")
    found, reader = values(artifact.path), CheckpointReader(factored)
    assert "blk.0.attn_q.weight" not in found
    u = reader.tensor("model.layers.0.self_attn.q_proj.lowrank_u.weight").numpy()
    v = reader.tensor("model.layers.0.self_attn.q_proj.lowrank_v.weight").numpy()
    np.testing.assert_array_equal(found["blk.0.attn_q.lowrank_u.weight"], interleave_rows(u, 4))
    np.testing.assert_array_equal(found["blk.0.attn_q.lowrank_v.weight"], v)
    keys = metadata(artifact.path)
    assert keys["general.architecture"] == "llama"
    assert (keys["lowrank.version"], keys["lowrank.layout"]) == (1, "two-factor")
    assert (keys["lowrank.retention"], keys["lowrank.method"]) == (1.0, "svd")
    assert keys["lowrank.recipe"] == "method: svd\n"
    assert artifact.layout == "native" and artifact.bytes == artifact.path.stat().st_size


def test_dense_layout_multiplies_out(factored: Path, tmp_path: Path) -> None:
    artifact = export(factored, tmp_path / "m.gguf", quantization="f32", layout="dense")
    found, reader = values(artifact.path), CheckpointReader(factored)
    u = reader.tensor("model.layers.1.mlp.down_proj.lowrank_u.weight")
    v = reader.tensor("model.layers.1.mlp.down_proj.lowrank_v.weight")
    np.testing.assert_allclose(found["blk.1.ffn_down.weight"], (u @ v).numpy(), rtol=1e-5, atol=1e-6)
    assert not any("lowrank" in name for name in found)
    assert "lowrank.version" not in metadata(artifact.path)
    assert artifact.layout == "dense"


@pytest.fixture(scope="module")
def pivot(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pivot")
    tiny.save_factored(path, "llama", rank=20, layout="pivot")
    return path


def test_pivot_layout(pivot: Path, tmp_path: Path) -> None:
    artifact = export(pivot, tmp_path / "m.gguf", quantization="f32")
    found, reader = values(artifact.path), CheckpointReader(pivot)
    q_proj = "model.layers.0.self_attn.q_proj"
    for kind in ("lowrank_p", "lowrank_c"):
        stored = reader.tensor(f"{q_proj}.{kind}.weight").numpy()
        np.testing.assert_array_equal(found[f"blk.0.attn_q.{kind}.weight"], stored)
    order = found["blk.0.attn_q.lowrank_perm"]
    assert order.dtype == np.int32
    np.testing.assert_array_equal(order, interleave_rows(reader.tensor(f"{q_proj}.lowrank_perm").numpy(), 4))
    assert "blk.0.ffn_up.lowrank_perm" not in found and "blk.0.ffn_down.lowrank_perm" in found
    keys = metadata(artifact.path)
    assert (keys["lowrank.version"], keys["lowrank.layout"]) == (2, "pivot")
    weights = [reader.tensor(name) for name in reader.names if reader.dtype(name) == "F32"]
    assert artifact.parameters == sum(weight.numel() for weight in weights)
    assert artifact.bytes == artifact.path.stat().st_size


@pytest.mark.parametrize(("key", "needle"), [("intermediate_size", "gate_proj"), ("num_key_value_heads", "k_proj")])
def test_pivot_rows_that_disagree_with_the_config(pivot: Path, tmp_path: Path, key: str, needle: str) -> None:
    source = Path(shutil.copytree(pivot, tmp_path / "m"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, key: config[key] * 2}))
    with pytest.raises(InputError, match=needle):
        export(source, tmp_path / "m.gguf")


def test_pivot_rows_multiplied_out(pivot: Path, tmp_path: Path) -> None:
    artifact = export(pivot, tmp_path / "m.gguf", quantization="f32", layout="dense")
    found, model = values(artifact.path), load(pivot)
    for name, stored in (("v_proj", "attn_v"), ("o_proj", "attn_output")):
        weight = model.get_submodule(f"model.layers.1.self_attn.{name}").dense_weight().detach().numpy()
        np.testing.assert_allclose(found[f"blk.1.{stored}.weight"], weight, rtol=1e-5, atol=1e-6)
    assert not any("lowrank" in name for name in found)
    assert "lowrank.version" not in metadata(artifact.path)


def test_dense_checkpoint_gives_an_ordinary_file(dense: Path, tmp_path: Path) -> None:
    artifact = export(dense, tmp_path / "m.gguf")
    assert artifact.layout == "dense"
    assert not any(key.startswith("lowrank") for key in metadata(artifact.path))
    weight = CheckpointReader(dense).tensor("lm_head.weight").half().numpy()
    np.testing.assert_array_equal(values(artifact.path)["output.weight"], weight)


def test_tied_embedding_is_stored_once(factored: Path, tmp_path: Path) -> None:
    names = [tensor.name for tensor in export(factored, tmp_path / "m.gguf").tensors]
    assert names[0] == "token_embd.weight" and "output.weight" not in names
    assert len(names) == len(set(names))


@pytest.mark.parametrize("layout", ["factored", "pivot"])
@pytest.mark.parametrize("quantization", MIXES)
def test_record_prediction_and_file_agree(
    request: pytest.FixtureRequest, tmp_path: Path, ggml: Path, quantization: str, layout: str
) -> None:
    source = request.getfixturevalue(layout)  # whose rows are too short for a type that wants an importance
    artifact = export(source, tmp_path / "m.gguf", quantization=quantization)
    reader = GGUFReader(artifact.path)
    stored = {tensor.name: (tensor.tensor_type.name.lower(), tensor.n_bytes) for tensor in reader.tensors}
    assert stored == {tensor.name: (tensor.type, tensor.bytes) for tensor in artifact.tensors}
    shapes = {tensor.name: tensor.shape for tensor in artifact.tensors}
    assert artifact.bytes - reader.data_offset == predict_bytes(shapes, Quantization(quantization))
    assert stored["blk.0.attn_norm.weight"][0] == "f32"


def test_every_fallback_is_reported(factored: Path, tmp_path: Path) -> None:
    notes = Notes()
    artifact = export(factored, tmp_path / "m.gguf", quantization="q8_0", progress=notes)
    odd = {tensor.name for tensor in artifact.tensors if tensor.type == "f16"}
    assert odd and all(name.endswith("lowrank_u.weight") for name in odd)  # rank 20 is no multiple of 32
    (line,) = notes.lines
    assert line.startswith("stored as f16 (16 bits per weight) instead of q8_0 (8.5), whose blocks of 32 their rows")
    for name in odd:
        assert f"{name.split('.', 2)[2]} (rows of 20, blocks 0-1)" in line


def test_pivot_rows_in_few_bits_are_warned_of(pivot: Path, tmp_path: Path) -> None:
    for quantization, warned in (("q4_0", True), ("q5_1", True), ("q8_0", False)):
        notes = Notes()
        export(pivot, tmp_path / f"{quantization}.gguf", quantization=quantization, progress=notes)
        assert any("pivot rows lose far more" in line for line in notes.lines) == warned


def test_embedding_and_head_types(dense: Path, factored: Path, tmp_path: Path) -> None:
    options = {"quantization": "f16", "embedding": "q8_0", "head": "q5_0"}
    types = {tensor.name: tensor.type for tensor in export(dense, tmp_path / "m.gguf", **options).tensors}
    assert (types["token_embd.weight"], types["output.weight"]) == ("q8_0", "q5_0")
    assert types["blk.0.attn_q.weight"] == "f16"
    with pytest.raises(UsageError, match="one type, not q8_0 and q5_0"):
        export(factored, tmp_path / "tied.gguf", **options)
    with pytest.raises(UsageError, match="unknown GGUF type 'q8'"):
        export(factored, tmp_path / "tied.gguf", head="q8")
    assert not (tmp_path / "tied.gguf").exists()


def test_type_without_its_encoder(dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_progress: SilentProgress) -> Path:
        raise ResourceError("no compiler")

    monkeypatch.setattr(runtime, "ggml_library", missing)
    with pytest.raises(ResourceError, match="no compiler"):
        export(dense, tmp_path / "m.gguf", quantization="iq4_nl", head="q8_0")
    assert list(tmp_path.iterdir()) == []


def test_existing_output(factored: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    out.write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        export(factored, out)
    with pytest.raises(UsageError, match="exists"):
        export(factored, tmp_path, force=True)
    assert out.read_text() == "mine"
    export(factored, out, force=True)
    assert out.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize("options", [{"quantization": "q3"}, {"layout": "pivot"}])
def test_unknown_option(factored: Path, tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="unknown GGUF"):
        export(factored, tmp_path / "m.gguf", **options)
    assert list(tmp_path.iterdir()) == []


def test_unsupported_family(tiny: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "model"
    tiny.save_dense(source, "llama")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "gpt_neox"}))
    with pytest.raises(InputError, match="'gpt_neox'"):
        export(source, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_untied_head_must_be_there(tiny: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "model"
    tiny.save_dense(source, "llama", tied=True)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(InputError, match="lm_head"):
        export(source, tmp_path / "m.gguf")


def test_value_that_is_not_finite_names_its_tensor(tiny: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "model"
    built = tiny.model("llama")
    with torch.no_grad():
        built.model.layers[1].mlp.up_proj.weight[3, 5] = torch.nan
    built.save_pretrained(source)
    tiny.tokenizer().save_pretrained(source)
    with pytest.raises(InputError, match=r"blk\.1\.ffn_up\.weight.*not finite"):
        export(source, tmp_path / "m.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [1_000, 100_000])
def test_no_space(factored: Path, tmp_path: Path, room: int) -> None:
    (tmp_path / "m.gguf").write_text("mine")
    with file_size_limit(room), pytest.raises(ResourceError, match="no space left"):
        export(factored, tmp_path / "m.gguf", quantization="f32", force=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("m.gguf", "mine")]


def test_full_disk(factored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file.os, "fsync", full)
    with pytest.raises(ResourceError, match=r"no space left, the file needs 0 MB|no space left"):
        export(factored, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_interruption_leaves_nothing(factored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(factored, tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []
