"""Thresholds decide, nothing that is no number passes, and a gates file with a mistake is refused in one line."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lowrank_export.converter.core.errors import InputError, UsageError
from lowrank_export.exporters.registry import TARGETS
from lowrank_export.exporters.target import ExportTarget
from lowrank_export.runtime_tests.gates.gate_file import (
    OTHER_PARITY,
    QUALITY_DEFAULTS,
    GateSettings,
    gates_of,
    parity_defaults,
    read_gates,
)
from lowrank_export.runtime_tests.gates.gate_metrics import METRICS, Context
from lowrank_export.runtime_tests.gates.gates import failed, gate
from lowrank_export.runtime_tests.generation.writing import Writing
from lowrank_export.runtime_tests.metrics.degeneration import Degeneration
from lowrank_export.runtime_tests.metrics.footprint import Footprint
from lowrank_export.runtime_tests.metrics.parity import Parity
from lowrank_export.runtime_tests.metrics.perplexity import Perplexity
from lowrank_export.runtime_tests.metrics.tasks import TaskScore
from lowrank_export.runtime_tests.metrics.tokenizer_check import TokenizerCheck
from lowrank_export.runtime_tests.report.report import Row
from lowrank_export.runtime_tests.timing.speed import Rate, Speed

PARITY = Parity(1e-5, 1e-6, 1e-6, 1e-4, 1e-3, 0.999, 0.99, 0.0, 1e-4, 1e-3, 100)
TEXT = Degeneration(0.8, 0.9, 0.1, 4, 64, 0.0, (0.1, 0.1))
SPEED = Speed(Rate(100.0, 90.0, 110.0), Rate(50.0, 45.0, 55.0), 256, 32, 3, 1)
ROW = Row(
    model="factored",
    backend="llama.cpp",
    path="m.gguf",
    sha256="",
    format="gguf",
    quantization="f16",
    layout="native",
    bytes=1000,
    parameters=4000,
    bytes_per_token=1000,
    perplexity=Perplexity(20.01, 0.5, 100),
    parity=PARITY,
    quality=replace(PARITY, mean_kld=0.3),
    writing=Writing((), (), TEXT, TEXT),
    tokenizer=TokenizerCheck(11, ()),
    speeds=(SPEED,),
    dense_speeds=(SPEED,),
    tasks=(TaskScore("piqa", "acc", 0.6, 0.02, 100, "1.0"),),
    footprint=Footprint(1.5, 100, 5000),
)
TORCH = replace(ROW, perplexity=Perplexity(20.0, 0.5, 100), backend="torch")
CONTEXT = Context(TORCH, replace(TORCH, perplexity=Perplexity(15.0, 0.5, 100)))


def found(row: Row, settings: GateSettings | None = None, *, against_dense: bool = True) -> dict[str, Any]:
    gates = gates_of(row, CONTEXT, settings or GateSettings(), against_dense=against_dense)
    return {gate.name: gate for gate in gates}


@pytest.mark.parametrize(
    ("value", "at_least", "passed"),
    [
        (0.0, False, True),
        (1.0, False, True),
        (1.0001, False, False),
        (math.nan, False, False),
        (1.0, True, True),
        (0.999, True, False),
        (math.nan, True, False),
    ],
)
def test_gate(value: float, at_least: bool, passed: bool) -> None:
    made = gate("g", value, 1.0, at_least=at_least)
    assert made.passed is passed
    assert f"at {'least' if at_least else 'most'} 1 is allowed" in made.words


@pytest.mark.parametrize(
    ("format", "quantization", "kld"),
    [
        ("gguf", "f32", 1e-4),
        ("gguf", "f16", 1e-4),
        ("gguf", "q8_0", 0.02),
        ("onnx", "fp32", 1e-6),
        ("onnx", "fp16", 1e-4),
        ("onnx", "int8", 0.02),
        ("onnx", "int4", 1.2),
        ("onnx", "int4-mix", 1.2),
    ],
)
def test_documented_limits(format: str, quantization: str, kld: float) -> None:
    assert parity_defaults(format, quantization)["parity.mean_kld"] == kld
    assert parity_defaults("gguf", "iq1_s") == OTHER_PARITY
    assert set(OTHER_PARITY) | set(QUALITY_DEFAULTS) <= set(METRICS)


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_every_type_has_its_limits(target: ExportTarget) -> None:
    assert set(target.parity_limits()) >= set(target.types())
    for type in target.types():
        assert parity_defaults(target.format, type) != OTHER_PARITY, type


def test_defaults_pass_and_each_fails_alone() -> None:
    assert failed(found(ROW).values()) == ()
    assert set(found(ROW)) == {"parity.mean_kld", "parity.perplexity_change", *QUALITY_DEFAULTS}
    assert set(found(ROW, against_dense=False)) >= {"parity.mean_kld", "parity.perplexity_change"}
    worse = replace(TEXT, repetition=0.5, repetitions=(0.5, 0.5))
    broken = {
        "parity.mean_kld": replace(ROW, parity=replace(PARITY, mean_kld=2e-4)),
        "parity.perplexity_change": replace(ROW, perplexity=Perplexity(19.97, 0.5, 100)),  # better is as wrong as worse
        "quality.mean_kld": replace(ROW, quality=replace(PARITY, mean_kld=1.1)),
        "generation.repetition_increase": replace(ROW, writing=Writing((), (), TEXT, worse)),
        "artifact.tokenizer": replace(ROW, tokenizer=TokenizerCheck(11, ("naïve",))),
    }
    for name, row in broken.items():
        (bad,) = failed(found(row).values())
        assert bad.name == name
    assert "'naïve'" in bad.words


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_can_fail_and_pass(name: str) -> None:
    """Against its own value, and just beyond it."""
    metric = METRICS[name]
    value = metric.read(ROW, CONTEXT)
    assert value is not None and math.isfinite(value)
    step = -1e-9 if metric.at_least else 1e-9
    for threshold, passed in ((value + step, True), (value - step, False)):
        assert found(ROW, GateSettings({name: threshold}))[name].passed is passed


def test_a_sampled_value_fails_when_it_is_beyond_doubt() -> None:
    """By more than two standard errors; the words say both."""
    for value, at_least, passed in ((0.49, False, True), (0.51, False, False), (0.11, True, True), (0.09, True, False)):
        assert gate("g", value, 0.3, at_least=at_least, error=0.1).passed is passed
    assert gate("g", 0.51, 0.3, error=0.1).words == "g 0.51 ± 0.1, at most 0.3 is allowed"
    assert gate("g", 0.31, 0.3, error=math.nan).passed is False and not gate("g", math.nan, 0.3, error=1.0).passed
    for shares, passed in (((0.9, 0.3), True), ((0.6, 0.6), False)):  # means alike, the first decided by one text
        written = replace(TEXT, repetition=0.6, repetitions=shares, repetition_error=abs(shares[0] - shares[1]) / 2)
        row = replace(ROW, writing=Writing((), (), TEXT, written))
        assert found(row)["generation.repetition_increase"].passed is passed
        assert found(row, GateSettings({"generation.repetition": 0.5}))["generation.repetition"].passed is passed


def test_what_was_asked_for_but_not_measured_fails() -> None:
    bare = replace(ROW, quality=None, speeds=(), dense_speeds=(), footprint=None, writing=None, tokenizer=None)
    assert set(found(bare)) == {"parity.mean_kld", "parity.perplexity_change", "quality.perplexity_increase"}
    asked = found(bare, GateSettings({"speed.decode": 10.0, "quality.same_top": 0.5}))
    assert not asked["speed.decode"].passed and "not measured, needs --speed" in asked["speed.decode"].words
    assert not asked["quality.same_top"].passed and "--dense" in asked["quality.same_top"].words


FILE = """
parity:
  mean_kld: 1e-3
quality:
  same_top: 0.6
  mean_kld: off
size: {bytes: 100MB, peak_memory: 1.5 GiB}
artifacts:
  gguf q4_k_m:
    parity: {mean_kld: 0.4}
"""


def test_gates_file(tmp_path: Path) -> None:
    path = tmp_path / "gates.yaml"
    path.write_text(FILE)
    settings = read_gates(path)
    assert settings.asked("gguf", "f16") == {
        "parity.mean_kld": 1e-3,
        "quality.same_top": 0.6,
        "quality.mean_kld": None,
        "size.bytes": 1e8,
        "size.peak_memory": 1.5 * 2**30,
    }
    assert settings.asked("gguf", "q4_k_m")["parity.mean_kld"] == 0.4
    assert "quality.mean_kld" not in found(ROW, settings)  # switched off
    flagged = settings.with_flags(["parity.mean_kld=1e-6", "quality.mean_kld = 0.2"])
    assert flagged.asked("gguf", "q4_k_m")["parity.mean_kld"] == 1e-6
    assert not found(ROW, flagged)["quality.mean_kld"].passed
    path.write_text("")
    assert read_gates(path).asked("gguf", "f16") == {}


@pytest.mark.parametrize(
    ("text", "needles"),
    [
        ("party: {mean_kld: 1}", ["unknown section 'party'", "did you mean 'parity'"]),
        ("parity: {mean_kl: 1}", ["unknown gate 'mean_kl' in parity", "did you mean 'mean_kld'"]),
        ("parity: {mean_kld: low}", ["parity.mean_kld", "expected a number", "'low'"]),
        ("parity: {mean_kld: true}", ["parity.mean_kld", "expected a number", "True"]),
        ("parity: {mean_kld: -1}", ["parity.mean_kld", "at least 0", "-1"]),
        ("parity: {mean_kld: .nan}", ["parity.mean_kld", "nan"]),
        ("quality: {same_top: 60}", ["quality.same_top", "at most 1", "60"]),
        ("size: {bytes: 100 parsecs}", ["size.bytes", "100MB", "parsecs"]),
        ("parity: 3", ["parity", "expected names with thresholds"]),
        ("artifacts: {ggfu f16: {}}", ["unknown format 'ggfu'", "did you mean 'gguf'"]),
        ("artifacts: {gguf q4km: {}}", ["unknown gguf type 'q4km'", "did you mean 'q4_k_m'"]),
        ("artifacts: {gguf f16: {speeed: {}}}", ["gguf f16", "unknown section 'speeed'", "did you mean 'speed'"]),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, text: str, needles: list[str]) -> None:
    path = tmp_path / "gates.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        read_gates(path)
    for needle in [str(path), *needles]:
        assert needle in str(error.value)
    assert "\n" not in str(error.value)


def test_unreadable_files_and_flags(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such gates file"):
        read_gates(tmp_path / "none.yaml")
    for text in ("a: [", "- 1"):
        (tmp_path / "gates.yaml").write_text(text)
        with pytest.raises(InputError, match="YAML"):
            read_gates(tmp_path / "gates.yaml")
    for flag, message in (("mean_kld=1", "unknown gate 'mean_kld'"), ("parity.mean_kld", "NAME=THRESHOLD")):
        with pytest.raises(UsageError, match=message):
            GateSettings().with_flags([flag])


def test_every_gate_is_documented() -> None:
    """By its whole name, or by its key in the row of its section."""
    text = (Path(__file__).parents[3] / "docs" / "validation.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    for name in METRICS:
        section, _, key = name.partition(".")
        if section == "quality" and f"parity.{key}" in METRICS:
            section = "parity"  # "`quality.*`: the same against the dense model"
        assert any(f"`{section}." in row and (f"`{key}`" in row or f"`{section}.{key}`" in row) for row in rows), name
