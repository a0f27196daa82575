"""Aware rounding: every linear against plain rounding, and a whole model against the file that is written."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from torch import nn

from lowrank_export.converter.checkpoint.lowrank_linear import LowRankLinear
from lowrank_export.converter.checkpoint.pivot_linear import PivotLinear
from lowrank_export.converter.checkpoint.reader import CheckpointReader
from lowrank_export.converter.core.errors import InputError, UsageError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.model.loading import load, load_tokenizer
from lowrank_export.converter.statistics.calibration import calibrate
from lowrank_export.exporters.gguf import gptq_tensors
from lowrank_export.exporters.gguf.ggml_encoder import ggml_decode
from lowrank_export.exporters.gguf.gptq_tensors import rounder
from lowrank_export.exporters.gguf.mixes import Quantization, exported_as
from lowrank_export.exporters.gguf.names import interleave_rows
from lowrank_export.exporters.gguf.rounding import round_nearest
from lowrank_export.exporters.gguf.rounding_choice import Rounding
from lowrank_export.exporters.gguf.writer import export_gguf
from lowrank_export.exporters.rounding.calibrated import open_calibrated
from lowrank_export.exporters.rounding.gptq_linears import round_linear

M, N, RANK = 96, 128, 64


@pytest.fixture
def moment() -> torch.Tensor:
    """Sigma of inputs of unequal size that go together, as a trained model's do."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64))[0]
    x = torch.randn(2000, N, generator=generator, dtype=torch.float64) * torch.logspace(1, -1, N, dtype=torch.float64)
    return (mixing.T @ (x.T @ x / 2000) @ mixing).contiguous()


def factored() -> LowRankLinear:
    torch.manual_seed(1)
    linear = LowRankLinear(N, M, RANK, bias=True)
    scales = torch.logspace(0.5, -1, RANK)
    linear.lowrank_u.weight.data = torch.randn(M, RANK) * scales
    linear.lowrank_v.weight.data = torch.randn(RANK, N) * scales[:, None]
    return linear.requires_grad_(False)


def pivoted() -> PivotLinear:
    torch.manual_seed(2)
    linear = PivotLinear(N, M, RANK, bias=False, permuted=True)
    linear.lowrank_perm = torch.randperm(M).int()
    return linear.requires_grad_(False)


def dense() -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(N, M).requires_grad_(False)


def weight(linear: Any) -> torch.Tensor:
    found = linear.weight if isinstance(linear, nn.Linear) else linear.dense_weight()
    return found.double()


def loss(before: torch.Tensor, after: torch.Tensor, moment: torch.Tensor) -> float:
    return float(((before - after) @ moment * (before - after)).sum())


MODULES = {
    "factored": (factored, ("lowrank_u.weight", "lowrank_v.weight"), 0.2),
    "pivot": (pivoted, ("lowrank_c.weight", "lowrank_p.weight"), 0.5),
    "dense": (dense, ("weight",), 0.5),
    "multiplied out": (factored, ("weight",), 0.5),
}


@pytest.mark.parametrize("type", ["q4_0", "iq4_nl"])
@pytest.mark.parametrize("kind", MODULES)
def test_output_error_is_a_fraction_of_plain_rounding(kind: str, type: str, moment: torch.Tensor, ggml: Path) -> None:
    make, parts, fraction = MODULES[kind]
    before, bias = weight(make()), getattr(make(), "bias", None)
    linear, encoded = round_linear("x", make(), moment, dict.fromkeys(parts, type), rounder(ggml))
    assert encoded.keys() == set(parts)
    plain: Any = make()
    if kind == "multiplied out":
        plain = nn.Linear(N, M, bias=False).requires_grad_(False)
        plain.weight.data = before.float()
    for part in parts:
        parameter = plain.get_parameter(part)
        parameter.data = round_nearest(parameter.data, type, ggml).values
    assert loss(before, weight(linear), moment) < fraction * loss(before, weight(plain), moment)
    if bias is not None:
        assert torch.equal(linear.bias, bias)
    for part, rows in encoded.items():  # the module computes what the runtime reads
        read = linear.get_parameter(part)
        np.testing.assert_array_equal(ggml_decode(ggml, rows, type, read.shape[1]), read)


def test_seed_is_the_linears_own(moment: torch.Tensor, ggml: Path) -> None:
    types = dict.fromkeys(("lowrank_u.weight", "lowrank_v.weight"), "q4_0")
    first, again, other = (round_linear(name, factored(), moment, types, rounder(ggml))[1] for name in ("x", "x", "y"))
    for part in types:
        np.testing.assert_array_equal(first[part], again[part])
    assert not np.array_equal(first["lowrank_v.weight"], other["lowrank_v.weight"])


def test_values_beyond_the_type(moment: torch.Tensor, ggml: Path) -> None:
    linear = dense()
    linear.weight.data[0, 0] = 1e6
    with pytest.raises(InputError, match=r"'blk\.x\.weight' holds 1e\+06, beyond the range of q4_0"):
        round_linear("blk.x", linear, moment, {"weight": "q4_0"}, rounder(ggml))


@pytest.fixture
def checkpoint(tiny: ModuleType, tmp_path: Path) -> Path:
    """A factored model of 32-wide rows that records its calibration text."""
    text = tmp_path / "notes.txt"
    text.write_text(tiny.TEXT, encoding="utf-8")
    tiny.save_factored(tmp_path / "m", "llama", rank=32)
    drawn = calibrate(str(text), load_tokenizer(tmp_path / "m"), windows=6, length=64, held_out=0, seed=0)
    (tmp_path / "m" / "calibration.json").write_text(json.dumps(drawn.record()), encoding="utf-8")
    return tmp_path / "m"


def export(checkpoint: Path, out: Path, how: str, type: str = "q4_0") -> Path:
    return export_gguf(checkpoint, out, Quantization(type), rounding=Rounding(how), progress=SilentProgress()).path


def divergence(checkpoint: Path, file: Path, windows: np.ndarray) -> float:
    """Mean KL divergence in nats of the file's block linears, put into the torch model, from the checkpoint."""
    reference, model = load(checkpoint), load(checkpoint)
    stored = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    places = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
    places |= {"attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj"}
    for name, tensor in stored.items():
        if "lowrank" in name:
            _, block, module, part, _ = name.split(".")
            values = dequantize(tensor.data, tensor.tensor_type)
            if part == "lowrank_u" and module in ("attn_q", "attn_k"):  # back from llama.cpp's rotary order
                order = interleave_rows(np.arange(len(values)), 4 if module == "attn_q" else 2)
                values = values[np.argsort(order)]
            path = f"model.layers.{block}.{places.get(module, 'mlp.down_proj')}.{part}.weight"
            model.get_parameter(path).data = torch.from_numpy(values.copy())
    with torch.no_grad():
        p, q = (m(torch.from_numpy(windows).long()).logits.double().log_softmax(-1) for m in (reference, model))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_a_whole_file(checkpoint: Path, tmp_path: Path) -> None:
    from lowrank_export.converter.storage.gguf_header import read_header

    files = {how: export(checkpoint, tmp_path / f"{how}.gguf", how) for how in ("plain", "aware")}
    windows = calibrate(
        str(tmp_path / "notes.txt"), load_tokenizer(checkpoint), windows=6, length=64, held_out=0, seed=5
    ).windows
    plain, found = (divergence(checkpoint, file, windows) for file in files.values())
    assert found < 0.6 * plain
    assert files["plain"].stat().st_size == pytest.approx(files["aware"].stat().st_size, abs=64)
    stated = {how: exported_as(read_header(file)) for how, file in files.items()}
    assert [said.rounding for said in stated.values() if said] == [None, "aware"]
    assert not list(tmp_path.glob(".*"))  # no folder of encoded rows is left


def test_types_without_blocks_run_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq_tensors, "round_linears", lambda *_: pytest.fail("ran"))
    found = export(checkpoint, tmp_path / "aware.gguf", "aware", "f16")
    plain = export(checkpoint, tmp_path / "plain.gguf", "plain", "f16")
    for ours, theirs in zip(GGUFReader(found).tensors, GGUFReader(plain).tensors, strict=True):
        np.testing.assert_array_equal(ours.data, theirs.data)


def test_what_aware_rounding_needs(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "calibration.json").unlink()
    with pytest.raises(UsageError, match="records no calibration text"):
        export(checkpoint, tmp_path / "m.gguf", "aware")
    assert not (tmp_path / "m.gguf").exists()


def test_windows_are_no_longer_than_the_model_attends_over(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "calibration.json").write_text('{"windows": 4, "window_length": 600}', encoding="utf-8")
    _, chunks = open_calibrated(CheckpointReader(checkpoint), str(tmp_path / "notes.txt"), "cpu", SilentProgress())
    assert [chunk.shape for chunk in chunks] == [(4, 512)]
