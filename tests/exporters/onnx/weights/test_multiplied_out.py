"""Linears that are multiplied out: which, what the graph then holds, and that it still computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from lowrank_export.converter.checkpoint.layouts import LAYOUTS, Layout, parameters, shapes
from lowrank_export.converter.checkpoint.lowrank_linear import LowRankLinear
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import UsageError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.model.loading import load_tokenizer
from lowrank_export.converter.statistics.calibration import calibrate
from lowrank_export.exporters.onnx.check.selfcheck import kld
from lowrank_export.exporters.onnx.export import export_onnx
from lowrank_export.exporters.onnx.session import open_decoder
from lowrank_export.exporters.onnx.weights import multiplied_out as policy
from lowrank_export.exporters.onnx.weights.multiplied_out import multiplied_out, multiply_out, stored_shapes
from lowrank_export.exporters.onnx.weights.types import QUANTIZATIONS, OnnxOptions

AUTO, ALL = OnnxOptions(), OnnxOptions(factors="all")
BLOCK = "model.layers.0."
ATTENTION, MLP = f"{BLOCK}self_attn.", f"{BLOCK}mlp."


def block(width: int, ranks: dict[str, int], layout: Layout = "two-factor") -> dict[str, tuple[int, ...]]:
    """The tensors of a block: k and v are a third as wide as q, the rest dense where it has no rank."""
    wide = {
        f"{ATTENTION}q_proj": (width, width),
        **{f"{ATTENTION}{name}_proj": (width // 3, width) for name in "kv"},
        f"{ATTENTION}o_proj": (width, width),
        **{f"{MLP}{name}_proj": (width * 8 // 3, width) for name in ("gate", "up")},
        f"{MLP}down_proj": (width, width * 8 // 3),
    }
    found: dict[str, tuple[int, ...]] = {}
    for name, (m, n) in wide.items():
        rank = ranks.get(name.rpartition(".")[2].removesuffix("_proj"))
        found |= {f"{name}.weight": (m, n)} if rank is None else shapes(layout, name, m, n, rank)
    return found


def test_what_is_multiplied_out_at_576_columns() -> None:
    stored = block(576, {"q": 96, "k": 96, "o": 160, "gate": 224, "up": 256, "down": 288})
    assert multiplied_out(stored, "int8", AUTO) == {f"{ATTENTION}k_proj"}, "v is dense, q saves more than it costs"
    assert multiplied_out(stored, "fp32", AUTO) == set()
    mixed = multiplied_out(stored, "int4-mix", AUTO)
    attention = {f"{ATTENTION}{name}_proj" for name in "qko"}  # v has 4 bits: it cannot join V, which has 8
    assert mixed == attention | {f"{MLP}down_proj"}
    assert all(multiplied_out(stored, type, ALL) == set() for type in QUANTIZATIONS)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_wide_linears_stay_factored(layout: Layout, quantization: str) -> None:
    ranks = dict.fromkeys(("q", "k", "v", "o"), 448) | dict.fromkeys(("gate", "up", "down"), 960)
    assert multiplied_out(block(3072, ranks, layout), quantization, AUTO) == set()


def test_a_rank_at_which_nothing_is_saved() -> None:
    stored = shapes("two-factor", "lm_head", 1024, 1024, 512)
    assert parameters("two-factor", 1024, 1024, 512) == 1024 * 1024
    assert multiplied_out(stored, "fp32", AUTO) == {"lm_head"}
    assert stored_shapes(stored, "fp32", AUTO) == {"lm_head.weight": (1024, 1024)}
    assert stored_shapes(stored, "fp32", ALL) == stored


def test_stored_shapes_of_pivot_rows() -> None:
    ranks = dict.fromkeys(("q", "k", "v", "o", "gate", "up", "down"), 12)
    stored = stored_shapes(block(48, ranks, "pivot"), "int8", AUTO)
    assert stored == block(48, {}), "48 columns: no factor pays, no order of rows is left"


def test_multiply_out_keeps_what_is_computed() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(LowRankLinear(20, 30, 7, bias=True), LowRankLinear(30, 5, 3, bias=False))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(4, 20)
    before = model(x)
    multiply_out(model, ["0", "1"])
    assert all(type(module) is torch.nn.Linear for module in model)
    torch.testing.assert_close(model(x), before)


def nodes_of(folder: Path, *kinds: str) -> list[str]:
    graph = onnx.load(str(folder / "model.onnx"), load_external_data=False).graph
    return [node.name for node in graph.node if node.op_type in kinds and "layers" in node.name]


@pytest.mark.parametrize("quantization", ["fp32", "int8", "int4-mix"])
@pytest.mark.parametrize("names", ["qkv", "qk", "q", ("gate", "up"), ("gate",), ("o", "down"), ()], ids=str)
def test_the_policy_counts_the_nodes_that_the_graph_has(
    tmp_path: Path, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], quantization: str
) -> None:
    for name in ("MATMUL", "SPLIT"):
        monkeypatch.setattr(policy, name, 1.0)
    monkeypatch.setattr(policy, "PER_MEGABYTE", 0.0)
    monkeypatch.setattr(policy, "PER_MILLION_WEIGHTS", dict.fromkeys((32, 16, 8, 4), 0.0))
    merged = {f"{MLP if len(name) > 1 and name != 'o' else ATTENTION}{name}_proj" for name in names}
    monkeypatch.setattr("lowrank_export.exporters.onnx.export.multiplied_out", lambda *_: frozenset(merged))
    tiny.save_factored(tmp_path / "in", "llama", rank=24, blocks=1)
    export_onnx(tmp_path / "in", tmp_path / "out", quantization=quantization, progress=SilentProgress())
    reader = CheckpointReader(tmp_path / "in")
    groups = policy._groups({name: reader.shape(name) for name in reader.names})
    counted = sum(policy._cost(group, merged, quantization, AUTO) for group in groups)
    assert counted == len(nodes_of(tmp_path / "out", "MatMul", "MatMulNBits", "Split"))


def test_dense_linears_join_the_matmul_of_their_input(tmp_path: Path, tiny: ModuleType) -> None:
    tiny.save_factored(tmp_path / "in", "qwen2", rank=24, blocks=1)  # q, k, v have biases
    model_logits = _logits_of_torch(tmp_path / "in")
    with pytest.MonkeyPatch.context() as patch:
        merged = frozenset({f"{ATTENTION}k_proj", f"{MLP}up_proj"})
        patch.setattr("lowrank_export.exporters.onnx.export.multiplied_out", lambda *_: merged)
        made = export_onnx(tmp_path / "in", tmp_path / "out", progress=SilentProgress())
    tensors = {record.name: record.shape for record in made.tensors}
    assert tensors["model.layers.0.attn.qkv_proj.lowrank_v.MatMul.weight"] == (64, 24 + 32 + 24)
    assert tensors["model.layers.0.mlp.gate_up_proj.lowrank_v.MatMul.weight"] == (64, 24 + 160)
    np.testing.assert_allclose(_logits(tmp_path / "out"), model_logits, atol=1e-4)
    assert made.facts["multiplied_out"] == "2 of 7 factored linears" and made.layout == "native"


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_model_without_factors_left(tmp_path: Path, tiny: ModuleType, quantization: str) -> None:
    tiny.save_factored(tmp_path / "in", "llama", rank=32)
    made = export_onnx(tmp_path / "in", tmp_path / "out", quantization=quantization, progress=SilentProgress())
    assert made.layout == "dense" and not nodes_of(tmp_path / "out", "Split")
    assert not any("lowrank_" in record.name for record in made.tensors)
    assert made.parameters == 320 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 160 * 64) + 5 * 64
    limits = {"fp32": 1e-9, "fp16": 1e-5, "int8": 0.005, "int4-mix": 0.2, "int4": 0.2}
    assert kld(_logits_of_torch(tmp_path / "in"), _logits(tmp_path / "out")).mean() < limits[quantization]


def test_aware_rounding_of_what_is_multiplied_out(tmp_path: Path, tiny: ModuleType) -> None:
    tiny.save_factored(tmp_path / "in", "llama", rank=32)
    (tmp_path / "notes.txt").write_text(tiny.TEXT, encoding="utf-8")
    text, tokenizer = str(tmp_path / "notes.txt"), load_tokenizer(tmp_path / "in")
    drawn = calibrate(text, tokenizer, windows=6, length=64, held_out=0, seed=0)
    (tmp_path / "in" / "calibration.json").write_text(json.dumps(drawn.record()), encoding="utf-8")
    found = {}
    for how in ("plain", "aware"):
        options = OnnxOptions(accuracy_level=0, rounding=how)
        made = export_onnx(
            tmp_path / "in", tmp_path / how, quantization="int4", options=options, progress=SilentProgress()
        )
        assert made.layout == "dense"
        tokens = np.asarray(tokenizer.encode(tiny.TEXT)[200:328], dtype=np.int32)
        found[how] = kld(_logits_of_torch(tmp_path / "in", tokens), _logits(tmp_path / how, tokens)).mean()
    assert found["aware"] < 0.75 * found["plain"]


def test_unknown_choice_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"--onnx-factors al: auto or all.*did you mean 'all'"):
        OnnxOptions(factors="al")


TOKENS = np.random.default_rng(3).integers(0, 320, 40, dtype=np.int32)


def _logits(folder: Path, tokens: np.ndarray[Any, Any] = TOKENS) -> np.ndarray[Any, Any]:
    decoder = open_decoder(folder, threads=1)
    logits, _ = decoder.run(tokens, decoder.empty_cache, keep_cache=False)
    return logits


def _logits_of_torch(checkpoint: Path, tokens: np.ndarray[Any, Any] = TOKENS) -> np.ndarray[Any, Any]:
    from lowrank_export.converter.model.loading import load

    with torch.no_grad():
        return np.asarray(load(checkpoint)(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy())
