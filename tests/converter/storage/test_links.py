"""Which links of a model folder are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.storage.links import FOLLOW, check_links

NAMES = {"config.json": f"{1:040x}", "model.safetensors": f"{2:064x}"}


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLLOW, raising=False)


def cached(repository: Path, blobs: Path) -> Path:
    """A snapshot as the hub's cache makes it; its blobs lie in `blobs`, which is beside it or linked from there."""
    (snapshot := repository / "snapshots" / ("a" * 40)).mkdir(parents=True)
    blobs.mkdir(parents=True)
    if blobs != repository / "blobs":
        (repository / "blobs").symlink_to(blobs)
    for name, blob in NAMES.items():
        (blobs / blob).write_text(name)
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    return snapshot


def test_a_cache_of_the_hub(tmp_path: Path) -> None:
    check_links(cached(tmp_path / "models--a--b", tmp_path / "models--a--b" / "blobs"))


def test_blobs_on_another_disk(tmp_path: Path) -> None:
    check_links(cached(tmp_path / "models--a--b", tmp_path / "disk" / "elsewhere"))


def test_a_cache_that_is_reached_by_a_link(tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "disk" / "models--a--b", tmp_path / "disk" / "models--a--b" / "blobs")
    (tmp_path / "hub").symlink_to(tmp_path / "disk")
    check_links(tmp_path / "hub" / "models--a--b" / "snapshots" / snapshot.name)
    (tmp_path / "mine").symlink_to(snapshot)
    check_links(tmp_path / "mine")


@pytest.mark.parametrize("name", ["passwd", "0" * 39, "g" * 40, "A" * 40, "0" * 64 + ".key"])
def test_a_folder_that_calls_another_its_blobs_reaches_nothing_by_it(tmp_path: Path, name: str) -> None:
    snapshot = cached(tmp_path / "models--a--b", tmp_path / "secrets")
    (tmp_path / "secrets" / name).write_text("secret")
    (snapshot / "LICENSE").symlink_to(tmp_path / "secrets" / name)
    with pytest.raises(InputError, match="LICENSE: is a link that leads out of its folder"):
        check_links(snapshot)


def test_nothing_below_linked_blobs(tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "models--a--b", tmp_path / "secrets")
    (tmp_path / "secrets" / "more").mkdir()
    (tmp_path / "secrets" / "more" / f"{3:040x}").write_text("secret")
    (snapshot / "LICENSE").symlink_to(tmp_path / "secrets" / "more" / f"{3:040x}")
    with pytest.raises(InputError, match="LICENSE: is a link"):
        check_links(snapshot)


@pytest.mark.parametrize("said", ["", "0", "yes"])
def test_a_folder_of_links_is_refused_with_the_way_out(
    tmp_path: Path, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLLOW, said)
    (tmp_path / "m").mkdir()
    (tmp_path / "weights").write_text("x")
    (tmp_path / "m" / "model.safetensors").symlink_to(tmp_path / "weights")
    with pytest.raises(InputError, match=r"put the file itself there, or set LOWRANK_FOLLOW_LINKS=1 if the links are"):
        check_links(tmp_path / "m")
    monkeypatch.setenv(FOLLOW, "1")
    check_links(tmp_path / "m")


def test_links_within_the_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to(f"../{tmp_path.name}/a")
    check_links(tmp_path)
