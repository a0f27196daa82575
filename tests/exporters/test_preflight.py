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
