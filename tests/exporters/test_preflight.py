"""The forecast of an export: above the peak of a process that does it, not far above, and refused beyond a limit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from typer.testing import CliRunner

from lowrank_export.cli import app
from lowrank_export.converter.core.errors import ResourceError, UsageError
from lowrank_export.exporters.gguf.rounding_choice import Rounding
from lowrank_export.exporters.preflight import plan_export_memory
from lowrank_export.exporters.registry import requested

WIDE = 60_000  # tokens, so that the embedding is far more than all else


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
def dense(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    model = tiny.model("llama", blocks=1, tied=False, vocab_size=WIDE, hidden_size=1024)
    model.to(request.param).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("type", ["q8_0", "f16"])
def test_the_forecast_is_above_the_peak(dense: Path, tmp_path: Path, type: str) -> None:
    command = [sys.executable, "-m", "lowrank_export", "export", str(dense), "--gguf-type", type, "--json"]
    done = subprocess.run(
        [*command, "--max-memory", "2GB", "--out", str(tmp_path)], capture_output=True, text=True, check=True
    )
    memory = json.loads(done.stdout)["memory"]
    assert 0.6 * memory["forecast_bytes"] < memory["peak_bytes"] < memory["forecast_bytes"] < memory["limit_bytes"]
    assert "peak memory" in done.stderr.splitlines()[-1] and "forecast" in done.stderr.splitlines()[-1]


def test_a_limit_below_the_forecast(dense: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(dense), "--max-memory", "300MB", "--out", str(tmp_path / "out")])
    assert result.exit_code == ResourceError.exit_code and result.stderr.count("\n") == 1
    assert "largest tensor" in result.stderr and "allow that much" in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_has_no_forecast_has_no_limit(dense: Path) -> None:
    for request in (
        requested("onnx", "int8"),
        requested("gguf", "q4_0", rounding=Rounding("aware")),
        requested("gguf", "q8_0", layout="adapter"),
    ):
        assert plan_export_memory(dense, [request], None) is None
        with pytest.raises(UsageError, match="--max-memory"):
            plan_export_memory(dense, [request], 10**12)


def compress(folder: Path, out: Path, *options: str) -> Any:
    given = ["--model", str(folder), "--calibration", str(folder.parent / "text.txt"), "--method", "svd-llm"]
    sizes = ["--windows", "2", "--window-length", "16", "--held-out", "0", "--out", str(out)]
    return CliRunner().invoke(app, ["compress", *given, *sizes, *options])


def test_compress_asks_the_formats_that_are_named(tiny: ModuleType, tmp_path: Path) -> None:
    """Only those; types of linears need no rounding yet; ranks suit the types, unless a multiple is given."""
    tiny.save_dense(tmp_path / "m", "gemma", blocks=1, hidden_size=128, intermediate_size=384)
    (tmp_path / "text.txt").write_text(tiny.TEXT)
    for options in (["--format", "gguf"], ["--gguf-type", "iq2_xs"], ["--format", "onnx", "--format", "gguf"]):
        refused = compress(tmp_path / "m", tmp_path / "out", *options)
        assert refused.exit_code == 3 and "GGUF export supports" in refused.stderr, refused.stderr
        assert "compressing" not in refused.stderr and not (tmp_path / "out").exists()
    wide = {"hidden_size": 512, "intermediate_size": 512, "num_key_value_heads": 4, "head_dim": 128}
    tiny.save_dense(tmp_path / "wide", "gemma", blocks=1, **wide)
    done = compress(tmp_path / "wide", tmp_path / "out", "--format", "onnx", "--onnx-type", "int4")
    assert done.exit_code == 0, done.stderr
    assert {rank % 64 for rank in CheckpointReader(tmp_path / "out").ranks.values()} == {0}
    assert read_recipe(tmp_path / "out" / "recipe.yaml").rank_multiple == 64
    tiny.save_dense(tmp_path / "llama", "llama", blocks=1, hidden_size=256, intermediate_size=384)
    done = compress(tmp_path / "llama", tmp_path / "iq", "--gguf-type", "iq2_xs", "--rank-multiple", "8")
    assert done.exit_code == 0, done.stderr
