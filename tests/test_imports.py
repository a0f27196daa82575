"""Imports point one way: cli -> runtime_tests -> exporters -> converter."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ("converter", "exporters", "runtime_tests", "cli")
FILES = sorted(
    path.relative_to(ROOT)
    for stage in STAGES
    for path in ([ROOT / f"{stage}.py"] if (ROOT / f"{stage}.py").exists() else (ROOT / stage).rglob("*.py"))
)


def _imported_stages(file: Path) -> set[str]:
    """Stages a file imports, wherever the import stands; bare absolute imports of a stage are refused."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
            assert not names & {*STAGES, "lowrank_export"}, f"{file}: import relatively, not {names}"
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            top = (node.module or "").split(".")[0]
            assert top not in {*STAGES, "lowrank_export"}, f"{file}: import relatively, not from {node.module}"
        elif isinstance(node, ast.ImportFrom):
            package = file.parent.parts[: len(file.parent.parts) - node.level + 1]
            full = [*package, *(node.module or "").split(".")] if node.module else list(package)
            names = {full[0]} if full else {alias.name for alias in node.names}
            found |= names & set(STAGES)
    return found


@pytest.mark.parametrize("file", FILES, ids=str)
def test_nothing_imports_upward(file: Path) -> None:
    stage = STAGES.index(file.parts[0].removesuffix(".py"))
    upward = {name for name in _imported_stages(file) if STAGES.index(name) > stage}
    assert not upward, f"{file} imports {upward}, which comes after it"


def test_every_stage_is_looked_at() -> None:
    assert {file.parts[0].removesuffix(".py") for file in FILES} >= set(STAGES[:3])
