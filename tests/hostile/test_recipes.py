"""Recipes, gates.yaml and flags that are no YAML, no mapping, too much of it, or ask for what does not exist."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

Refused = Callable[..., str]


def bomb(depth: int = 40) -> str:
    """Lines of YAML that stand for 10^40 words."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, depth)]
    return "\n".join([*lines, f"model: *a{depth - 1}"])


YAML: dict[str, tuple[str | bytes, str]] = {
    "bomb": (bomb(), "an alias inside an anchor"),
    "bomb of mappings": ("a: &a {x: 1}\nb: &b {<<: *a, y: *a}\nmodel: *b", "an alias inside an anchor"),
    "knot": ("model: &a [*a]", "an alias inside an anchor"),
    "many aliases": ("a: &a x\nkeep_dense: [" + "*a, " * 500 + "*a]", "too many aliases"),
    "alias of nothing": ("model: *nothing", "undefined alias"),
    "nested lists": ("model: " + "[" * 10_000, "nested too deeply"),
    "nested mappings": ("{a: " * 10_000, "nested too deeply"),
    "large": ("# " + "x" * 2**21, "too many for such a file"),
    "bytes": (b"\xff\xfe\x00", "not readable as UTF-8"),
    "control characters": ("model: \x1b[2J", "not readable as YAML"),
    "tab": ("model:\tx\n\t- y", "not readable as YAML"),
    "open quote": ('model: "x', "not readable as YAML"),
    "two documents": ("model: x\n---\nmodel: y", "not readable as YAML"),
    "object": ("model: !!python/object/apply:os.system [touch ran]", "not readable as YAML"),
    "name": ("model: !!python/name:os.system", "not readable as YAML"),
    "tag": ("model: !evil x", "not readable as YAML"),
    "day": ("seed: 2001-99-99", "not readable as YAML"),
    "digits": ("seed: " + "9" * 10_000, "not readable as YAML"),
    "binary": ("model: !!binary '\U0001f642'", "not readable as YAML"),
    "list key": ("[a, b]: c", "not readable as YAML"),
    "unhashable key": ("{a: b}: c", "not readable as YAML"),
    "merge of nothing": ("<<: x", "not readable as YAML"),
}


@pytest.mark.parametrize("case", YAML)
def test_yaml(refused: Refused, tmp_path: Path, case: str) -> None:
    content, needle = YAML[case]
    path = tmp_path / "r.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused("plan", "--recipe", path, code=3, needle=needle)
    refused("validate", tmp_path, "--reference", tmp_path, "--gates", path, code=3, needle=needle)


@pytest.mark.parametrize("content", ["", "7", "text", "[model, x]", "null", "~", "2001-01-01", "- model: x"])
def test_no_mapping(refused: Refused, tmp_path: Path, content: str) -> None:
    (path := tmp_path / "r.yaml").write_text(content)
    refused("plan", "--recipe", path, code=3, needle="expected a YAML mapping")
    if content not in ("", "null", "~"):
        command = ["validate", tmp_path, "--reference", tmp_path, "--gates", path]
        refused(*command, code=3, needle="expected a YAML mapping")


@pytest.mark.parametrize(
    ("line", "needle"),
    [
        ("retentoin: 0.5", "did you mean 'retention'?"),
        ("? " + "x" * 10**5 + "\n: 1", "unknown key"),
        ('"\\e[2J": 1', "unknown key"),
        ("7: 8", "unknown key '7'"),
        ("model: 7", "model: Input should be a valid string"),
        ("model: [a]", "model: Input should be a valid string"),
        ("model: [" + "[" * 90 + "]" * 91, "model: Input should be a valid string"),
        ("model: {" + ", ".join(f"k{i}: {i}" for i in range(2000)) + "}", "model: Input should be a valid string"),
        ("retention: .nan", "retention"),
        ("retention: .inf", "retention"),
        ("retention: 1e999", "retention"),
        ("retention: '0.5'", "retention"),
        ("retention: true", "retention"),
        ("seed: -1", "seed"),
        ("seed: 0x" + "f" * 5000, "seed"),
        ("seed: 9223372036854775808", "seed"),
        ("windows: 1000000000000", "windows"),
        ("windows: 0x" + "f" * 5000, "windows"),
        ("window_length: 1000000000", "window_length"),
        ("held_out: 100000000000", "held_out"),
        ("rank_multiple: 1000000000000000000000", "rank_multiple"),
        ("gradient_windows: 10000000", "gradient_windows"),
        ("refine_epochs: 10000000", "refine_epochs"),
        ("refine_model_epochs: 0", "refine_model_epochs"),
        ("buckets: 0", "buckets"),
        ("keep_dense: 7", "keep_dense"),
        ("keep_dense: [7]", "keep_dense"),
        ("method: [svd]", "method"),
        ("method: " + "x" * 10**5, "unknown method"),
        ("layout: null", "layout"),
        ("dtype: 2001-01-01", "dtype"),
        ("alpha: 2", "alpha"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_values(refused: Refused, tmp_path: Path, line: str, needle: str) -> None:
    (path := tmp_path / "r.yaml").write_text(line if line.startswith("model") else f"model: x\n{line}")
    refused("plan", "--recipe", path, code=2, needle=needle)


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x", "\0", "x" * 5000, ".", "/dev/null", "/dev/zero", "-"])
def test_models_that_are_none(refused: Refused, name: str) -> None:
    refused("plan", "--model", name, "--method", "svd", code=3)


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/full", "."])
def test_places_that_never_end(refused: Refused, place: str) -> None:
    refused("plan", "--recipe", place, code=3, needle="not readable, since it is no file")
    refused("validate", ".", "--reference", ".", "--gates", place, code=3, needle="not readable, since it is no file")


def test_a_pipe_that_nobody_writes_to(refused: Refused, tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    refused("plan", "--recipe", pipe, code=3, needle="since it is no file")


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        ("parity: 7", "expected names with thresholds"),
        ("parity: [a]", "expected names with thresholds"),
        ("partiy: {mean_kld: 1}", "did you mean 'parity'?"),
        ("parity: {mean_kdl: 1}", "did you mean 'mean_kld'?"),
        ("7: {a: 1}", "unknown section 7"),
        ("2001-01-01: {a: 1}", "unknown section"),
        ("parity: {mean_kld: [1]}", "expected a number"),
        ("parity: {mean_kld: 2001-01-01}", "expected a number"),
        ("parity: {mean_kld: true}", "expected a number"),
        ("parity: {mean_kld: .nan}", "a threshold is at least"),
        ("parity: {mean_kld: .inf}", "a threshold is at least"),
        ("parity: {mean_kld: -1}", "a threshold is at least"),
        ("parity: {mean_kld: " + "9" * 400 + "}", "a threshold is at least"),
        ("parity: {mean_kld: 0x" + "f" * 5000 + "}", "a threshold is at least"),
        ("parity: {mean_kld: " + "x" * 10**5 + "}", "expected a number"),
        ("parity: {? {a: b}: 1}", ""),
        ("artifacts: 7", "expected names with thresholds"),
        ("artifacts: {gguf q9_0: {}}", "unknown gguf type 'q9_0'"),
        ("artifacts: {ggfu q8_0: {}}", "did you mean 'gguf'?"),
        ("artifacts: {7: {}}", "unknown format '7'"),
        ("artifacts: {gguf q8_0: 7}", "expected names with thresholds"),
        ("artifacts: {gguf q8_0: {parity: {x: 1}}}", "unknown gate 'x'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_gates(refused: Refused, tmp_path: Path, content: str, needle: str) -> None:
    (path := tmp_path / "g.yaml").write_text(content)
    command = ["validate", tmp_path, "--reference", tmp_path, "--gates", path]
    refused(*command, code=2 if needle else 3, needle=needle)


@pytest.mark.parametrize(
    "flag", ["", "=", "x", "x=1", "parity.mean_kld=", "parity.mean_kld=[", "parity.mean_kld=nan", "a\0=1", "=" * 1000]
)
def test_flags(refused: Refused, tmp_path: Path, flag: str) -> None:
    if flag == "parity.mean_kld=":
        return  # nothing given turns a gate off
    refused("validate", tmp_path, "--reference", tmp_path, "--gate", flag, code=2)


def test_anchors_of_plain_values_are_read(tmp_path: Path) -> None:
    from lowrank_export.runtime_tests.gates.gate_file import read_gates

    (path := tmp_path / "g.yaml").write_text(
        "artifacts:\n  gguf q8_0: &tight\n    parity: {mean_kld: 0.001}\n  gguf q4_0: *tight\n"
    )
    found = read_gates(path).artifacts
    assert found["gguf", "q8_0"] == found["gguf", "q4_0"] == {"parity.mean_kld": 0.001}
