"""Experts in a GGUF file: one tensor per linear of all experts, in their order, rounded expert by expert."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from gguf import GGUFReader

from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.families.table import gguf_of
from lowrank_export.converter.model.source import open_source
from lowrank_export.exporters.export import export
from lowrank_export.exporters.gguf.adapter import check_adapter
from lowrank_export.exporters.gguf.imatrix import Importance, read_imatrix, write_imatrix
from lowrank_export.exporters.gguf.names import gguf_shapes
from lowrank_export.exporters.preflight import check_exports
from lowrank_export.exporters.registry import requested

EXPERTS = 12  # the tenth sorts before the second by name
STACK = "blk.0.ffn_up_exps.lowrank_u.weight"


@pytest.fixture(scope="module")
def factored(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Path:
    folder: Path = tmp_path_factory.mktemp("factored")
    tiny.save_factored(folder, "qwen3_moe", rank=16, blocks=1, num_local_experts=EXPERTS)
    return folder


def test_tensors_and_keys(factored: Path, tmp_path: Path) -> None:
    made = export(factored, tmp_path / "m.gguf", requested("gguf", "f32"))
    file = GGUFReader(made.path)
    found = {tensor.name: tensor.data for tensor in file.tensors}
    reader = CheckpointReader(factored)
    for module, stored in (("gate_proj", "gate"), ("up_proj", "up"), ("down_proj", "down")):
        for factor in ("lowrank_u.weight", "lowrank_v.weight"):
            names = [f"model.layers.0.mlp.experts.{expert}.{module}.{factor}" for expert in range(EXPERTS)]
            expected = np.stack([reader.tensor(name).numpy() for name in names])
            np.testing.assert_array_equal(found[f"blk.0.ffn_{stored}_exps.{factor}"], expected)
    keys = {key: field.contents() for key, field in file.fields.items()}
    assert keys["qwen3moe.expert_count"] == EXPERTS and keys["qwen3moe.expert_used_count"] == 2
    assert keys["qwen3moe.expert_feed_forward_length"] == 96
    shapes = gguf_shapes({name: reader.shape(name) for name in reader.names}, gguf_of(reader.config))
    assert {name: tuple(values.shape) for name, values in found.items()} == shapes


def test_the_router_is_in_float32(factored: Path, tmp_path: Path) -> None:
    made = export(factored, tmp_path / "m.gguf", requested("gguf", "q8_0"))
    types = {tensor.name: tensor.type for tensor in made.tensors}
    assert types["blk.0.ffn_gate_inp.weight"] == "f32"
    assert types["blk.0.ffn_up_exps.lowrank_v.weight"] == "q8_0"


def test_importance_of_every_expert(factored: Path, tmp_path: Path) -> None:
    squares = np.random.default_rng(0).random((EXPERTS, 16), np.float32)
    said = {"architecture": "qwen3moe", "text": "notes.txt", "windows": 4, "window_length": 16}
    write_imatrix(Importance({STACK: squares}, 64), tmp_path / "i.gguf", **said, force=False)
    stored = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "i.gguf").tensors}
    assert stored[f"{STACK}.counts"].shape == (EXPERTS, 1)  # as llama-imatrix has them
    np.testing.assert_allclose(read_imatrix(tmp_path / "i.gguf")[STACK], squares, rtol=1e-6)


def test_ranks_that_differ_are_refused(tiny: ModuleType, tmp_path: Path) -> None:
    names = [f"model.layers.0.mlp.experts.{expert}.w1" for expert in range(4)]
    tiny.save_factored(tmp_path, "mixtral", blocks=1, only={name: 8 + (name == names[2]) for name in names})
    with pytest.raises(InputError, match="experts of a block have one rank in a GGUF file"):
        check_exports(CheckpointReader(tmp_path), [requested("gguf")], exported=True)


def test_some_experts_dense_are_refused(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_factored(tmp_path, "mixtral", blocks=1, only={"model.layers.0.mlp.experts.1.w1": 8})
    with pytest.raises(InputError, match="has shape"):
        check_exports(CheckpointReader(tmp_path), [requested("gguf")], exported=True)


def test_an_adapter_has_no_experts(factored: Path) -> None:
    with pytest.raises(InputError, match="a mixture of experts, which an adapter has no factors for"):
        check_adapter(CheckpointReader(factored), None, None)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_a_file_of_experts_is_no_input(tiny: ModuleType, tmp_path: Path, family: str) -> None:
    tiny.save_dense(tmp_path / "m", family, blocks=1)
    export(tmp_path / "m", tmp_path / "m.gguf", requested("gguf", "f32"))
    with pytest.raises(InputError, match="is not read; give the model's Hugging Face folder"):
        open_source(str(tmp_path / "m.gguf"), SilentProgress())


def test_norms_of_weights_that_llama_cpp_takes_for_granted(tiny: ModuleType, tmp_path: Path) -> None:
    tiny.save_dense(tmp_path, "qwen3_moe", blocks=1, norm_topk_prob=False)
    with pytest.raises(InputError, match=r"norm_topk_prob.*GGUF export does not carry"):
        check_exports(CheckpointReader(tmp_path), [requested("gguf")])
