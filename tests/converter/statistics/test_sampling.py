"""Windows that a model writes itself: drawn from its own distribution, once."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.converter.statistics import sampling
from lowrank_export.converter.statistics.sampling import Sampler


@pytest.fixture
def model(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny.save_dense(tmp_path / "dense", "llama")
    return tmp_path / "dense"


def test_sampled_once_and_again_where_anything_differs(
    model: Path, tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []

    def load(*given: object, **more: object) -> object:
        loaded.append(given)
        return before(*given, **more)  # type: ignore[arg-type]

    before = sampling.load
    monkeypatch.setattr(sampling, "load", load)
    sample = Sampler(model, "cpu", torch.float32, SilentProgress())
    first = sample(3, 12, 0)
    assert first.shape == (3, 12)
    assert len({row.tobytes() for row in first}) == 3
    np.testing.assert_array_equal(sample(3, 12, 0), first)
    assert len(loaded) == 1
    (kept,) = (tmp_path / "cache").rglob("*.npy")
    kept.write_bytes(kept.read_bytes()[:50])  # damaged: sampled again, and kept again
    np.testing.assert_array_equal(sample(3, 12, 0), first)
    np.testing.assert_array_equal(sample(3, 12, 0), first)
    assert len(loaded) == 2
    assert not np.array_equal(sample(3, 12, 1), first)
    assert sample(3, 13, 0).shape == (3, 13)
    assert sample(4, 12, 0).shape == (4, 12)
    assert len(loaded) == 5
    tiny.save_dense(model, "llama", seed=1)
    assert not np.array_equal(sample(3, 12, 0), first)
    assert len(loaded) == 6


def test_a_cache_that_cannot_be_written_is_done_without(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    sample = Sampler(model, "cpu", torch.float32, SilentProgress())
    np.testing.assert_array_equal(sample(2, 8, 0), sample(2, 8, 0))
