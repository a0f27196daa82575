"""Imports point one way: cli -> runtime_tests -> exporters -> converter, and no module imports itself over others."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENTRIES = ("__init__.py", "__main__.py")
"""Files of the root beside the stages: the lazy public interface and `python -m`."""
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


def _modules() -> dict[tuple[str, ...], Path]:
    """Dotted name within the package, in parts, of every module and of every folder's `__init__`."""
    return {
        file.parent.parts if file.name == "__init__.py" else file.with_suffix("").parts: file
        for file in (*FILES, *map(Path, ENTRIES))
    }


def _imported_modules(name: tuple[str, ...], file: Path, known: dict[tuple[str, ...], Path]) -> set[tuple[str, ...]]:
    """Modules that a file imports, inside functions and for types alone too."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        package = file.parent.parts[: len(file.parent.parts) - node.level + 1]
        module = (*package, *(node.module.split(".") if node.module else ()))
        for alias in node.names:
            target = (*module, alias.name) if (*module, alias.name) in known else module
            assert target in known, f"{file}: imports {'.'.join(target)}, which is not there"
            found.add(target)
    return found - {name}


def test_no_module_imports_itself_over_others() -> None:
    known = _modules()
    graph = {name: _imported_modules(name, file, known) for name, file in known.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail("a circle of imports: " + " <- ".join(".".join(name) for name in error.args[1]))


def test_no_stage_reads_the_root() -> None:
    """What the root offers comes from the stages, so none of them may need it."""
    known = _modules()
    for name, file in known.items():
        if name and name != ("__main__",):
            assert () not in _imported_modules(name, file, known), f"{file} imports the root's __init__"
