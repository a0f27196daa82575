"""The gates as test cases, in a pytest of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

PLUGIN = "lowrank_export.runtime_tests.pytest_plugin"


@pytest.fixture(scope="module")
def models(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ "full" and "good" of the same weights, "other" of lower rank, "cut", a truncated one, and "text.txt"."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("full", "good", "cut"):
        tiny.save_factored(folder / name, "llama")
    tiny.save_factored(folder / "other", "llama", rank=24)
    os.truncate(folder / "cut" / "model.safetensors", 50_000)
    (folder / "text.txt").write_text(tiny.TEXT, encoding="utf-8")
    return folder


def run(folder: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """pytest, with neither this project's configuration nor its conftest."""
    command = [sys.executable, "-m", "pytest", "-p", PLUGIN, "-p", "no:cacheprovider", "-rA", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_gates_are_test_cases(models: Path, tmp_path: Path) -> None:
    artifacts = [part for name in ("good", "other", "cut") for part in ("--lowrank-artifact", models / name)]
    measured = [
        "--lowrank-evaluate",
        models / "text.txt",
        "--lowrank-evaluation-windows",
        2,
        "--lowrank-evaluation-length",
        32,
    ]
    options = [
        *artifacts,
        "--lowrank-reference",
        models / "full",
        *measured,
        "--lowrank-threads",
        1,
        "--junitxml",
        "junit.xml",
    ]
    done = run(tmp_path, "--pyargs", "lowrank_export.runtime_tests", *options)
    assert done.returncode == 1, done.stdout + done.stderr
    cases = {case.get("name"): case for case in ElementTree.parse(tmp_path / "junit.xml").getroot().iter("testcase")}
    failed = {name for name, case in cases.items() if case.find("failure") is not None}
    assert failed == {
        "parity.mean_kld[other-torch]",
        "parity.perplexity_change[other-torch]",
        "artifact.runs[cut-torch]",
    }
    assert "truncated" in str(cases["artifact.runs[cut-torch]"].find("failure").get("message"))  # type: ignore[union-attr]
    passed = {name for name, case in cases.items() if case.find("failure") is None and case.find("skipped") is None}
    assert passed > {f"{gate}[good-torch]" for gate in ("artifact.runs", "artifact.tokenizer", "parity.mean_kld")}
    assert "quality.mean_kld[good-torch]" in set(cases) - passed  # there is no dense model
    properties = cases["parity.mean_kld[good-torch]"].iter("property")
    values = {item.get("name"): float(str(item.get("value"))) for item in properties}
    assert values["value"] <= values["threshold"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], 5, "no tests"),
        (["--lowrank-artifact", "none.gguf"], 4, "--lowrank-artifact needs --lowrank-reference"),
        (["--lowrank-artifact", "none.gguf", "--lowrank-reference", "x"], 2, "none.gguf: no such file or folder"),
        (
            ["--lowrank-artifact", "text.txt", "--lowrank-reference", "x", "--lowrank-gate", "parity.mean=1"],
            2,
            "text.txt: neither a .gguf",
        ),
    ],
)
def test_bad_calls(models: Path, options: list[str], code: int, message: str) -> None:
    done = run(models, "--pyargs", "lowrank_export.runtime_tests", *options)
    assert done.returncode == code, done.stdout + done.stderr
    assert message in done.stdout + done.stderr


def test_plugin_is_light_and_named_like_its_entry_point() -> None:
    import tomllib

    light = f"import sys, {PLUGIN}; assert not {{'torch', 'transformers', 'numpy'}} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", light], check=False).returncode == 0
    project = Path(__file__).parents[2] / "pyproject.toml"
    entries = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["entry-points"]["pytest11"]
    assert entries == {PLUGIN: PLUGIN}
