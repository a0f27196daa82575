"""Fixtures of the runtime tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lowrank_export.cli import app
from lowrank_export.runtime_tests.child import Cost
from lowrank_export.runtime_tests.gates.gates import gate
from lowrank_export.runtime_tests.generation.generation import Sample
from lowrank_export.runtime_tests.generation.writing import Writing
from lowrank_export.runtime_tests.metrics.degeneration import degeneration
from lowrank_export.runtime_tests.metrics.footprint import Footprint
from lowrank_export.runtime_tests.metrics.parity import AtPosition, Parity
from lowrank_export.runtime_tests.metrics.perplexity import Perplexity
from lowrank_export.runtime_tests.metrics.tasks import TaskScore
from lowrank_export.runtime_tests.metrics.tokenizer_check import TokenizerCheck
from lowrank_export.runtime_tests.report.report import LinearRank, Report, Row
from lowrank_export.runtime_tests.studies.compare_results import CompareRow, Comparison, Gathering, Measurement
from lowrank_export.runtime_tests.studies.sweep_results import PLAIN, Sweep, SweepRow
from lowrank_export.runtime_tests.timing.speed import Rate, Speed


@pytest.fixture(scope="session")
def child_here() -> Callable[[Sequence[str], Path], tuple[dict[str, Any], Cost]]:
    """What `run_child` gives, made inside this process."""

    def run(arguments: Sequence[str], log: Path) -> tuple[dict[str, Any], Cost]:
        result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout), Cost(1.0, 2.0, 3)

    return run


@pytest.fixture(scope="session")
def report() -> Report:
    """A report as a release of a small model would give: three runtimes, dense and factored, one gate failed."""
    parity = Parity(
        mean_kld=0.004,
        kld_error=1e-4,
        median_kld=0.002,
        p99_kld=0.03,
        max_kld=0.4,
        same_top=0.97,
        top5=0.95,
        mean_change=-0.001,
        rms_change=0.01,
        max_change=0.2,
        tokens=4088,
        by_position=tuple(AtPosition(16.0 + 32 * i, 0.004 + 0.0004 * i, 0.97, 256) for i in range(16)),
    )
    text = (
        Sample(
            "The history of the city begins with",
            " a river, a ford & a <market>, and with the people.",
            (5, 6, 7, 8, 5, 6),
        ),
        Sample("To make bread, you first", " need flour. Then you need flour.", (1, 2, 3, 1, 2, 3)),
    )
    figures = degeneration([sample.tokens for sample in text])
    writing = Writing(text, tuple(replace(sample, seed=i) for i, sample in enumerate(text)), figures, figures)
    rows = []
    places = (
        ("torch", "checkpoint", "f32", 538e6),
        ("llama.cpp", "gguf", "q8_0", 145e6),
        ("onnxruntime", "onnx", "int8", 154e6),
        ("onnxruntime-genai", "onnx", "int8", 154e6),
    )
    for number, (backend, format, quantization, size) in enumerate(places):
        for model, share, perplexity, kld in (("dense", 1.0, 14.9, 0.0), ("factored", 0.85, 26.8, 0.64)):
            rate = 100.0 * (1 + number)
            speeds = tuple(
                Speed(Rate(rate * 8, rate * 7, rate * 9), Rate(rate, rate * 0.9, rate * 1.1), length, 32, 3, threads)
                for threads in (1, 2)
                for length in (64, 256)
            )
            torch = backend == "torch"
            kept = int(size * share)
            rows.append(
                Row(
                    model=model,
                    backend=backend,
                    path=f"release/{model}-{quantization}.{format}",
                    sha256=f"{len(format)}{len(model)}" * 32,
                    format=format,
                    quantization=quantization,
                    layout="dense" if model == "dense" else "native",
                    bytes=kept,
                    parameters=134_515_008,
                    bytes_per_token=kept,
                    perplexity=Perplexity(perplexity * (1 + number / 200), perplexity / 25, 4088),
                    parity=None if torch else parity,
                    quality=replace(parity, mean_kld=kld + number / 1000) if kld else None,
                    writing=writing,
                    tokenizer=None if torch else TokenizerCheck(11, ()),
                    tasks=(TaskScore("piqa", "acc_norm", 0.61, 0.02, 1838, "1.0"),),
                    speeds=speeds,
                    dense_speeds=speeds if kld else (),
                    footprint=Footprint(0.8, 120_000_000, kept + 300_000_000),
                    bandwidth_share=0.6,
                    gates=()
                    if torch
                    else (gate("artifact.runs", 1, 1, at_least=True), gate("parity.mean_kld", 0.004, 0.02)),
                    fallbacks=("3 tensors stored as f16 instead of q4_k: blk.0.attn_q.lowrank_u.weight, ...",)
                    if kld
                    else (),
                )
            )
    rows[-1] = replace(rows[-1], gates=(*rows[-1].gates, gate("quality.mean_kld", 0.643, 0.5)))
    ranks = tuple(
        LinearRank(block, linear, 288 + 32 * ((block * 7 + place) % 5), 0.6 + 0.012 * block + 0.02 * place)
        for block in range(30)
        for place, linear in enumerate(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
    )
    provenance = {
        "command": ["validate", "model-q8_0.gguf", "--reference", "checkpoint", "--dense", "demo model"],
        "evaluation": {"text": "python-docs", "windowing": "even"},
        "recipe": {"model": "demo", "method": "loss-aware", "retention": 0.8, "seed": 0},
        "calibration": {"text": "python-docs", "windows": 32, "source_sha256": "ab" * 32},
        "license": "apache-2.0",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
    }
    return Report(
        rows=tuple(rows),
        windows={"count": 8, "length": 512, "predicted_tokens": 4088, "sha256": "c0" * 32},
        settings={"threads": 2, "device": "cpu", "dtype": "float32", "speed": True, "seed": 0},
        provenance=provenance,
        versions={"python": "3.11.9", "torch": "2.13.0", "onnxruntime": "1.31.1", "gguf": "0.19.0"},
        machine={"cpu": "AMD EPYC", "physical_cores": 2, "memory_bytes": 2**34, "memory_bytes_per_second": 2.1e10},
        ranks=ranks,
        thresholds={"every": {"quality.mean_kld": 0.5}, "artifacts": {}, "file": "gates.yaml"},
    )


@pytest.fixture(scope="session")
def comparison() -> Comparison:
    """A comparison of every method at four retentions, with figures of a plausible shape."""
    parity = Parity(0.3, 0.01, 0.1, 2.0, 9.0, 0.7, 0.8, -0.01, 0.1, 0.9, 4088)
    rows = []
    for retention in (0.9, 0.8, 0.6, 0.4):
        for place, method in enumerate(("adasvd", "loss-aware", "svd-llm", "svd-llm-u", "pifa-m", "saes", "fwsvd")):
            lost = (1 - retention) * (1 + place)
            found = Measurement(
                bytes=int(5.38e8 * (0.2 + 0.8 * retention)),
                parameters=134_515_008,
                perplexity=Perplexity(14.9 * 10 ** (2 * lost), 0.6, 4088),
                quality=replace(parity, mean_kld=3 * lost),
                sample=Sample("The history of the city begins with", f" the <{method}> of {retention}", (1, 2)),
            )
            rows.append(CompareRow(method, retention, retention - 0.004, Cost(100.0 * (1 + place), 60.0, 10**9), found))
    dense = Measurement(
        538_000_000, 134_515_008, Perplexity(14.9, 0.6, 4088), None, Sample("The history", " of it", (1,))
    )
    return Comparison(
        rows=tuple(rows),
        dense=dense,
        statistics=(Gathering("gradients", ("loss-aware", "fwsvd"), Cost(90.0, 50.0, 2 * 10**9)),),
        recipe={"model": "demo", "windows": 32, "seed": 0},
        source={"spec": "demo", "sha256": "ab" * 32, "licence": "apache-2.0"},
        evaluation={
            "evaluation_text": "python-docs",
            "evaluation_windows": {"count": 8, "length": 512, "predicted_tokens": 4088, "sha256": "c0" * 32},
            "device": "cpu",
            "threads": 2,
        },
        versions={"python": "3.11.9"},
        machine={"cpu": "AMD EPYC"},
    )


@pytest.fixture(scope="session")
def swept(comparison: Comparison) -> Sweep:
    """A sweep of two methods, three retentions and four types, with figures of a plausible shape."""
    parity = Parity(0.3, 0.01, 0.1, 2.0, 9.0, 0.7, 0.8, -0.01, 0.1, 0.9, 4088)
    rows = []
    types = (("q8_0", 145.0, 0.004), ("q5_k_m", 115.0, 0.03), ("q4_k_m", 105.0, 0.08), ("q2_k", 88.0, 1.1))
    for place, (method, retentions) in enumerate(
        ((PLAIN, (1.0,)), ("loss-aware", (0.9, 0.8, 0.6)), ("adasvd", (0.9, 0.8, 0.6)))
    ):
        for retention in retentions:
            for kind, size, kld in types:
                lost = kld + 1.2 * place * (1 - retention)
                rate = Rate(140 - size / 3, 120 - size / 3, 150 - size / 3)
                rows.append(
                    SweepRow(
                        method=method,
                        retention=retention,
                        kept=retention,
                        format="gguf",
                        quantization=kind,
                        backend="llama.cpp",
                        bytes=int(1e6 * size * (0.3 + 0.7 * retention)),
                        bits_per_weight=8 * size / 134.5,
                        perplexity=Perplexity(14.9 * (1 + lost), 0.6, 4088),
                        quality=replace(parity, mean_kld=lost),
                        speed=Speed(rate, rate, 256, 32, 3, 2),
                        compress_seconds=300.0 * place,
                    )
                )
    facts = {"text": "python-docs", "windowing": "even", "count": 8, "length": 512, "sha256": "c0" * 32, "threads": 2}
    return Sweep(
        rows=tuple(rows),
        dense=Perplexity(14.9, 0.6, 4088),
        recipe=comparison.recipe,
        source=comparison.source,
        evaluation=facts,
        versions=comparison.versions,
        machine=comparison.machine,
    )
