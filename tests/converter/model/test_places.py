"""The ways in which people keep a model."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import gguf
import pytest
import torch

from lowrank_export.converter.core.errors import InputError, ResourceError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.model.gguf_parts import gguf_parts, join_parts
from lowrank_export.converter.model.loading import load
from lowrank_export.converter.model.places import model_place
from lowrank_export.converter.model.source import open_checkpoint, open_source
from lowrank_export.converter.storage.gguf_header import read_header
from lowrank_export.exporters.gguf.mixes import Quantization
from lowrank_export.exporters.gguf.writer import export_gguf

SILENT = SilentProgress()


class Told(SilentProgress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def whole(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file, llama.cpp's own layout, with rows that q8_0 fits."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.save_dense(folder / "m", "llama")
    export_gguf(folder / "m", folder / "m.gguf", Quantization("f16"), layout="dense", progress=SILENT)
    return folder / "m.gguf"


@pytest.mark.parametrize("cuts", [(3,), (1, 2, 9), (0,)])
def test_parts_are_the_whole_file(whole: Path, tmp_path: Path, cuts: tuple[int, ...], gguf_files: ModuleType) -> None:
    parts = gguf_files.split(whole, tmp_path, cuts)
    assert all(list(gguf_parts(part)) == parts for part in parts)
    join_parts(parts, tmp_path / "joined")
    before, after = read_header(whole), read_header(tmp_path / "joined")
    assert dict(after.metadata) == dict(before.metadata)
    assert [(one.name, one.shape, one.type) for one in after.tensors] == [
        (one.name, one.shape, one.type) for one in before.tensors
    ]
    old, new = whole.read_bytes(), (tmp_path / "joined").read_bytes()
    for one, other in zip(before.tensors, after.tensors, strict=True):
        assert old[one.offset : one.offset + one.bytes] == new[other.offset : other.offset + other.bytes]
    assert [one.name for one in gguf.GGUFReader(tmp_path / "joined").tensors] == [one.name for one in before.tensors]


@pytest.mark.parametrize("given", ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", ""])
def test_a_model_in_parts_is_read(whole: Path, tmp_path: Path, given: str, gguf_files: ModuleType) -> None:
    (folder := tmp_path / "in").mkdir()
    gguf_files.split(whole, folder, (5,))
    tokens = torch.arange(24)[None]
    expected = load(open_source(str(whole), SILENT).path)(tokens).logits
    found = load(open_source(str(folder / given), SILENT).path)(tokens).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["UP.GGUF", "noext", "m.gguf.bak"])
def test_the_magic_tells_what_a_file_is(whole: Path, tmp_path: Path, name: str) -> None:
    (folder := tmp_path / "in").mkdir()
    shutil.copy(whole, folder / name)
    assert open_source(str(folder / name), SILENT).family.model_type == "llama"
    progress = Told()
    assert open_checkpoint(str(folder), progress).is_dir()
    assert progress.notes[0] == f"{folder}: {name} is taken"


def test_parts_that_are_no_whole(whole: Path, tmp_path: Path, gguf_files: ModuleType) -> None:
    parts = gguf_files.split(whole, tmp_path, (5,))
    shutil.copy(parts[0], tmp_path / "renamed.gguf")
    with pytest.raises(
        InputError, match=r"renamed.gguf: is part 1 of 2, and its name does not end with -00001-of-00002"
    ):
        open_source(str(tmp_path / "renamed.gguf"), SILENT)
    parts[1].rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"is part 1 of 2, and m-00002-of-00002.gguf is not beside it$"):
        open_source(str(parts[0]), SILENT)
    shutil.copy(parts[0], parts[1])
    with pytest.raises(InputError, match=r"00002.gguf: says that it is part 0 of 2 .* it must be part 1 of 2"):
        open_source(str(parts[0]), SILENT)
    for said, message in (({"no": 7}, "which is no part of a whole"), ({"tensors": 3}, "split.tensors.count says 3")):
        with pytest.raises(InputError, match=message):
            open_source(str(gguf_files.split(whole, tmp_path, (5,), **said)[0]), SILENT)


def test_several_files_are_named(whole: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "in").mkdir()
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(whole, folder / name)
    with pytest.raises(InputError, match=r"holds several GGUF files; give one of .*a\.gguf, .*b\.gguf$"):
        open_source(str(folder), SILENT)


def cached(root: Path, *names: str) -> Path:
    """A repository in a cache of the hub, with these snapshots."""
    repository = root / "models--tiny--llama"
    for name in names:
        (repository / "snapshots" / name).mkdir(parents=True)
        (repository / "snapshots" / name / "config.json").write_text("{}")
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    return repository


def test_the_snapshot_of_a_cache(tmp_path: Path) -> None:
    repository = cached(tmp_path, "a" * 40)
    only = repository / "snapshots" / ("a" * 40)
    assert model_place(repository) == model_place(repository / "snapshots") == model_place(only) == only
    second = cached(tmp_path, "b" * 40) / "snapshots" / ("b" * 40)
    with pytest.raises(InputError, match=r"a cache of the hub with several snapshots; give one of .*a{40}, .*b{40}$"):
        model_place(repository)
    (repository / "refs" / "main").write_text("b" * 40 + "\n")
    assert model_place(repository) == second
    for elsewhere in ("../../..", "/", "", "c" * 40, "b" * 40 + "/.."):
        (repository / "refs" / "main").write_text(elsewhere)
        with pytest.raises(InputError, match="several snapshots"):
            model_place(repository)
    with pytest.raises(InputError, match=r"is a cache of the hub; give one of .*models--tiny--llama$"):
        model_place(tmp_path)
    shutil.rmtree(repository / "snapshots")
    (repository / "snapshots").mkdir()
    with pytest.raises(InputError, match="without a snapshot; fetch the model again"):
        model_place(repository)


def test_a_cache_is_opened(tiny: ModuleType, tmp_path: Path) -> None:
    repository = cached(tmp_path)
    (repository / "blobs").mkdir(parents=True)
    tiny.save_dense(tmp_path / "plain", "llama")
    (snapshot := repository / "snapshots" / ("a" * 40)).mkdir(parents=True)
    for number, file in enumerate(sorted((tmp_path / "plain").iterdir())):
        shutil.copy(file, repository / "blobs" / f"{number:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064x}")
    progress = Told()
    assert open_source(str(repository), progress).path == snapshot
    assert progress.notes == [f"{repository}: snapshots/{'a' * 40} is taken"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "is one file of a model; give the folder that it lies in"),
        ("m.gguf.part2of2", "pieces that were cut from one file are joined with cat"),
        ("m.gguf-split-b", "pieces that were cut from one file are joined with cat"),
        ("m.bin", "not a model; give a Hugging Face folder"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=rf"^--model .*{name}: .*{message}"):
        open_source(str(tmp_path / name), SILENT)


def test_a_cache_that_cannot_be_written_is_named(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        ResourceError, match=r"file/lowrank-export: this cache cannot be written \(.*; set XDG_CACHE_HOME"
    ):
        open_source(str(whole), SILENT)
