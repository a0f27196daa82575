"""Activations in a file: what was put in comes out, and nothing of it stays."""

from __future__ import annotations

import errno
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank_export.converter.core.errors import ResourceError
from lowrank_export.converter.machine.memory import resident_memory
from lowrank_export.converter.model.activations import OnDisk, in_memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_put_in_comes_out(tmp_path: Path, dtype: torch.dtype) -> None:
    given = [torch.randn(2, 5, 3).to(dtype), torch.randn(1, 7, 3).to(dtype)]
    for keep in (in_memory, OnDisk(tmp_path)):
        kept = keep(iter(given))
        assert len(kept) == 2
        assert all(torch.equal(found, wanted) for found, wanted in zip(kept, given, strict=True))
        kept[1] = -given[1]
        assert torch.equal(kept[1], -given[1]) and torch.equal(kept[0], given[0])
        assert kept[1].dtype == dtype


def test_a_tensor_that_was_read_is_the_readers_own(tmp_path: Path) -> None:
    kept = OnDisk(tmp_path)([torch.zeros(3)])
    kept[0].add_(1)
    assert torch.equal(kept[0], torch.zeros(3))


def test_another_shape_or_type_is_refused(tmp_path: Path) -> None:
    kept = OnDisk(tmp_path)([torch.zeros(3)])
    for other in (torch.zeros(4), torch.zeros(3, dtype=torch.float64)):
        with pytest.raises(ValueError, match="in place of"):
            kept[0] = other


def test_the_file_has_no_name(tmp_path: Path) -> None:
    kept = OnDisk(tmp_path)([torch.ones(1000)])
    assert float(kept[0].sum()) == 1000 and not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' /proc")
def test_only_the_chunk_in_use_is_in_memory(tmp_path: Path) -> None:
    size, before = 2**24, resident_memory()  # 64 MB each
    kept = OnDisk(tmp_path)(torch.full((size,), float(chunk)) for chunk in range(4))
    largest = 0
    for chunk, x in enumerate(kept):
        assert float(x[-1]) == chunk and float(x.sum()) == chunk * size
        largest = max(largest, resident_memory() - before)
        del x
    assert largest < 2.5 * 4 * size
    assert resident_memory() - before < 0.5 * 4 * size


def test_a_full_disk_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: Full())
    with pytest.raises(ResourceError, match="no space left on the disk"):
        OnDisk(tmp_path)([torch.ones(3)])


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="not writable"):
        OnDisk(tmp_path / "nowhere")([torch.ones(3)])
