"""The wheel holds every package, py.typed, the patch and the templates, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """File names inside a freshly built wheel. It is built from a copy: setuptools leaves its work in the source."""
    import shutil

    source, out = tmp_path_factory.mktemp("source") / "project", tmp_path_factory.mktemp("wheel")
    skipped = shutil.ignore_patterns(".*", "build", "dist", "out", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=skipped)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(out), str(source)]
    if find_spec("setuptools"):
        command.append("--no-build-isolation")
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = out.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_every_module_is_in_the_wheel(names: set[str]) -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {ROOT, *(path.parent for name in ("converter", "exporters", "runtime_tests") for path in _modules(name))}
    assert {".".join(("lowrank_export", *folder.relative_to(ROOT).parts)) for folder in folders} == set(listed)
    expected = {
        f"lowrank_export/{path.relative_to(ROOT).as_posix()}"
        for folder in folders
        for path in folder.iterdir()
        if path.suffix in (".py", ".patch", ".json") or path.name == "py.typed"
    }
    expected |= {
        f"lowrank_export/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("runtime_tests/report/templates/*")
    }
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert "lowrank_export/py.typed" in names
    assert any(name.endswith(".patch") for name in names)
    assert "lowrank_export/runtime_tests/report/templates/compare.html" in names


@pytest.mark.slow
def test_licence_and_entry_point_are_in_the_wheel(names: set[str]) -> None:
    metadata = {name.split(".dist-info/")[1] for name in names if ".dist-info/" in name}
    assert {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"} == metadata


def _modules(name: str) -> list[Path]:
    return list((ROOT / name).rglob("*.py"))
