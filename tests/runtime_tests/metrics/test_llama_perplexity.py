"""Perplexity and divergence against llama.cpp's own `llama-perplexity`, on the demo model, within its rounding."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.model.loading import load_tokenizer
from lowrank_export.converter.storage.files import cache_folder
from lowrank_export.converter.texts.corpus import read_text
from lowrank_export.exporters.export import export
from lowrank_export.exporters.registry import requested
from lowrank_export.runtime_tests.backends.llama_cpp import LlamaCppBackend
from lowrank_export.runtime_tests.metrics.corpora import llama_cpp_windows
from lowrank_export.runtime_tests.metrics.measure import measure
from lowrank_export.runtime_tests.metrics.perplexity import perplexity
from lowrank_export.runtime_tests.metrics.reference_logits import ReferenceLogits

pytestmark = pytest.mark.slow
LENGTH, CHUNKS = 512, 4
CHARACTERS = 20_000  # enough for the chunks


@pytest.fixture(scope="module")
def tool() -> Path:
    """llama.cpp's program, on the path or in this project's cache (`lowrank-export runtime build --tools`)."""
    found = shutil.which("llama-perplexity")
    built = sorted((cache_folder() / "llama.cpp").glob("*/**/llama-perplexity"))
    if found is None and not built:
        pytest.skip("llama-perplexity is not there")
    return Path(found) if found is not None else built[-1]


def figure(log: str, name: str) -> float:
    """The number after a name in the tool's output."""
    match = re.search(rf"{name}\s*[:=]\s*(-?[0-9.]+)", log)
    assert match is not None, (name, log[-3000:])
    return float(match[1])


def test_same_figures(tool: Path, demo: Path, tmp_path: Path) -> None:
    reference, candidate = (
        export(demo, tmp_path / f"{kind}.gguf", requested("gguf", kind)).path for kind in ("f16", "q4_0")
    )
    text = read_text("python-docs", "evaluation")[:CHARACTERS]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    exact = ["-fa", "off", "-ctk", "f32", "-ctv", "f32"]
    common = ["-f", "text.txt", "-c", str(LENGTH), "-b", str(LENGTH), "--chunks", str(CHUNKS), "-t", "1", *exact]
    logs = []
    for model, more in ((reference, []), (candidate, ["--kl-divergence"])):
        command = [str(tool), "-m", str(model), *common, "--kl-divergence-base", "base.bin", *more]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        logs.append(done.stdout + done.stderr)

    windows = llama_cpp_windows(load_tokenizer(demo), text, windows=CHUNKS, length=LENGTH)
    backend = LlamaCppBackend(reference, n_ctx=LENGTH)
    logits = ReferenceLogits.record(backend, windows, tmp_path / "logits", SilentProgress())
    backend.close()
    with logits:
        backend = LlamaCppBackend(candidate, n_ctx=LENGTH)
        found = measure(backend, windows, [logits], SilentProgress(), label="q4_0")
        backend.close()
        base = perplexity(logits.losses)
    (parity,) = found.parities
    assert base.value == pytest.approx(figure(logs[0], "Final estimate: PPL"), rel=1e-4)
    assert base.standard_error == pytest.approx(float(logs[0].rpartition("+/-")[2].split()[0]), rel=1e-3)
    assert found.perplexity.value == pytest.approx(figure(logs[1], r"Mean PPL\(Q\)"), rel=1e-4)
    # the tool stores the base's log-probabilities in 16 bits each
    assert parity.mean_kld == pytest.approx(figure(logs[1], "Mean    KLD"), rel=5e-3, abs=1e-4)
    assert parity.median_kld == pytest.approx(figure(logs[1], "Median  KLD"), rel=2e-2, abs=2e-4)
    assert parity.max_kld == pytest.approx(figure(logs[1], "Maximum KLD"), rel=2e-2)
    assert 100 * parity.same_top == pytest.approx(figure(logs[1], "Same top p"), abs=0.2)
    assert 100 * parity.rms_change == pytest.approx(figure(logs[1], "RMS Δp"), abs=0.02)
    assert 100 * parity.mean_change == pytest.approx(figure(logs[1], "Mean    Δp"), abs=0.02)
