"""The pinned source: hashes, and the patch against a tree of its own making."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lowrank_export.converter.core.errors import InputError, ResourceError
from lowrank_export.exporters.llamacpp import source


def hunks() -> dict[str, list[tuple[int, list[str]]]]:
    """File -> (first line number, lines before the change) of every hunk of the shipped patch."""
    files: dict[str, list[tuple[int, list[str]]]] = {}
    current: list[tuple[int, list[str]]] = []
    for line in source.PATCH.read_text(encoding="utf-8").splitlines():
        if line.startswith("--- a/"):
            current = files.setdefault(line.removeprefix("--- a/"), [])
        elif match := re.match(r"@@ -(\d+)", line):
            current.append((int(match[1]), []))
        elif line[:1] in (" ", "-") and not line.startswith("---") and current:
            current[-1][1].append(line[1:])
    return files


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree that holds just the lines the patch expects, at their places."""
    for name, parts in hunks().items():
        lines: list[str] = []
        for start, before in parts:
            lines += [""] * (start - 1 - len(lines)) + before
        path = tmp_path / "vendor" / "llama.cpp" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "CMakeLists.txt").write_text(source.COMMON_FORCED_ON, encoding="utf-8")
    return tmp_path


def test_patch_applies(tree: Path) -> None:
    source.apply_patch(tree)
    patched = tree / "vendor" / "llama.cpp"
    assert "llama_lowrank_version" in (patched / "include" / "llama.h").read_text(encoding="utf-8")
    graph = (patched / "src" / "llama-graph.cpp").read_text(encoding="utf-8")
    assert "build_factor_mm(ctx0, w, build_factor_mm(ctx0, rest.v, cur))" in graph
    assert "COMMON OFF" in (tree / "CMakeLists.txt").read_text(encoding="utf-8")


def test_every_release_has_its_patch_and_every_patch_its_release() -> None:
    """The first is built; each patch says what it was made for."""
    shipped = {path.name for path in Path(source.__file__).parent.glob("*.patch")}
    assert shipped == {release.patch.name for release in source.RELEASES}
    assert (source.RELEASES[0].version, source.RELEASES[0].patch) == (source.VERSION, source.PATCH)
    for release in source.RELEASES:
        assert release.version in release.patch.read_text(encoding="utf-8").splitlines()[0]
        assert re.fullmatch(r"[0-9a-f]{64}", release.sha256)


SPLIT = {"ggml/include/ggml.h", "ggml/src/ggml-cpu/ggml-cpu.c", "ggml/src/ggml-cpu/repack.cpp"}
TILES = "ggml/src/ggml-cpu/amx/mmq.cpp"


def test_patch_touches_of_ggml_only_how_a_factor_is_split_over_threads_and_amx_tiles() -> None:
    touched = {*SPLIT, TILES}
    assert {name for name in hunks() if not name.startswith(("src/", "include/llama.h"))} == touched
    assert {name: len(hunks()[name]) for name in touched} == {**dict.fromkeys(SPLIT, 1), TILES: 2}


def test_amx_tiles_are_constants_that_no_compiler_drops(tree: Path) -> None:
    """gcc before 12.4 and 13.3 drops stores to what `_tile_loadconfig` reads."""
    source.apply_patch(tree)
    text = (tree / "vendor" / "llama.cpp" / TILES).read_text(encoding="utf-8")
    assert "static const tile_config_t tc = {" in text and "_tile_loadconfig(&tc);" in text
    assert not re.search(r"tc\.\w+(\[\d\])? *=", text) and "done" not in text


def test_sums_over_one_amx_block_start_from_zero(tree: Path) -> None:
    source.apply_patch(tree)
    text = (tree / "vendor" / "llama.cpp" / TILES).read_text(encoding="utf-8")
    last = text[text.index("// final accumulation") :].split("} else {")[0]
    assert "GGML_DISPATCH_BOOL(KB > 1, is_acc" in last
    assert last.count("acc_C<TA, TB, is_acc>") == 4 and "acc_C<TA, TB, true>" not in last


def test_patch_refuses_another_source(tree: Path) -> None:
    (tree / "vendor" / "llama.cpp" / "src" / "llama.cpp").write_text("something else\n", encoding="utf-8")
    with pytest.raises(InputError, match="does not apply"):
        source.apply_patch(tree)


def test_another_build_file_is_refused(tree: Path) -> None:
    (tree / "CMakeLists.txt").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match=r"CMakeLists\.txt"):
        source.apply_patch(tree)


def test_hash(tmp_path: Path) -> None:
    path = tmp_path / "file.tar.gz"
    path.write_bytes(b"data")
    source.verify(path, hashlib.sha256(b"data").hexdigest())
    with pytest.raises(InputError, match=r"file\.tar\.gz has SHA-256"):
        source.verify(path, "0" * 64)
    with pytest.raises(InputError, match="was not downloaded"):
        source.verify(tmp_path / "other", "0" * 64)


def test_no_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def offline(command: list[str], **_: Any) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=1, stderr="WARNING: retrying\nERROR: No matching distribution found\n")

    monkeypatch.setattr(source.subprocess, "run", offline)
    with pytest.raises(ResourceError, match=r"could not download.*No matching distribution") as caught:
        source.download(tmp_path)
    assert "\n" not in str(caught.value)
    assert commands[0][0] == sys.executable and "--require-hashes" in commands[0]


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("", "no output"),
        ("a\nfatal error: x.h\nnote: see error above\nb\n", "fatal error: x.h"),
        ("one\ntwo\n", "two"),
    ],
)
def test_last_error(output: str, line: str) -> None:
    assert source.last_error(output) == line


def test_a_source_is_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill left half-unpacked is thrown away, what is whole stays, and downloads are checked every time."""
    sdist, wheel = b"archive", b"wheel"
    names = [f"x-{source.VERSION}.tar.gz", "d.whl"]
    digests = {names[0]: hashlib.sha256(sdist).hexdigest(), names[1]: hashlib.sha256(wheel).hexdigest()}
    monkeypatch.setattr(source, "HASHES", digests)
    steps: list[str] = []

    def download(folder: Path) -> None:
        steps.append("download")
        (folder / names[0]).write_bytes(sdist)
        (folder / names[1]).write_bytes(wheel)

    def unpack(archive: Path, folder: Path) -> Path:
        assert not folder.exists()
        (folder / "x").mkdir(parents=True)
        return folder / "x"

    monkeypatch.setattr(source, "download", download)
    monkeypatch.setattr(source, "unpack", unpack)
    monkeypatch.setattr(source, "apply_patch", lambda tree: steps.append("patch"))
    (tmp_path / "partial" / "half").mkdir(parents=True)
    ready = source.prepared_source(tmp_path)
    assert ready == tmp_path / "source" == source.prepared_source(tmp_path) and steps == ["download", "patch"]
    (tmp_path / names[1]).write_bytes(b"another")
    with pytest.raises(InputError, match="has SHA-256"):
        source.prepared_source(tmp_path)
