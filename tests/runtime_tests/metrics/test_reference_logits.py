"""Recorded logits: exact, small in memory, gone afterwards, refused before the disk is full."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lowrank_export.converter.core.errors import InputError, ResourceError
from lowrank_export.converter.core.progress import SilentProgress
from lowrank_export.runtime_tests.metrics.perplexity import token_losses
from lowrank_export.runtime_tests.metrics.reference_logits import ReferenceLogits
from lowrank_export.runtime_tests.metrics.windows import Windows

TOKENS = np.random.default_rng(0).integers(0, 30, (3, 6)).astype(np.int32)
WINDOWS = Windows.whole(TOKENS)
Usage = namedtuple("Usage", "total used free")


class FakeBackend:
    """Logits that depend on the window, with an optional damaged entry."""

    name = "fake"

    def __init__(self, bad: float | None = None) -> None:
        self.bad, self.calls = bad, 0

    def window_logits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        self.calls += 1
        logits = np.random.default_rng(int(tokens.sum())).standard_normal((len(tokens), 30)).astype(np.float32)
        if self.bad is not None and self.calls == 2:
            logits[4, 7] = self.bad
        return logits

    def reset(self) -> None: ...

    def feed(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        return self.window_logits(tokens)[-1]

    def close(self) -> None: ...


def test_recorded_logits_are_the_backends(tmp_path: Path) -> None:
    with ReferenceLogits.record(FakeBackend(), WINDOWS, tmp_path / "logits", SilentProgress()) as recorded:
        assert len(recorded) == 3 and recorded.vocabulary == 30
        assert recorded.path.stat().st_size == 3 * 5 * 30 * 4
        for index, found in enumerate(recorded):
            expected = FakeBackend().window_logits(TOKENS[index])[:-1]
            np.testing.assert_array_equal(found, expected)
            losses = recorded.losses[5 * index : 5 * index + 5]
            np.testing.assert_array_equal(losses, token_losses(expected, TOKENS[index, 1:]))
    assert list(tmp_path.iterdir()) == []


def test_only_scored_positions_are_recorded(tmp_path: Path) -> None:
    windows = Windows(TOKENS, np.array([0, 3, 4], np.int32))
    with ReferenceLogits.record(FakeBackend(), windows, tmp_path / "logits", SilentProgress()) as recorded:
        assert recorded.losses.shape == (5 + 2 + 1,)
        for index, rows in enumerate((slice(0, 5), slice(3, 5), slice(4, 5))):
            np.testing.assert_array_equal(recorded.window(index), FakeBackend().window_logits(TOKENS[index])[rows])


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_damaged_logits_name_backend_and_window(tmp_path: Path, bad: float, word: str) -> None:
    with pytest.raises(InputError, match=rf"fake: {word} logits in window 1 at position 4"):
        ReferenceLogits.record(FakeBackend(bad), WINDOWS, tmp_path / "logits", SilentProgress())
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_seen_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(1, 1, 1000))
    backend = FakeBackend()
    with pytest.raises(ResourceError, match="scratch"):
        ReferenceLogits.record(backend, WINDOWS, tmp_path / "logits", SilentProgress())
    assert backend.calls == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_that_fills_up_while_writing() -> None:
    from lowrank_export.runtime_tests.metrics import reference_logits

    with Path("/dev/full").open("wb", buffering=0) as file, pytest.raises(ResourceError, match="disk full"):
        reference_logits._write(file, np.zeros((4, 4), np.float32))  # type: ignore[arg-type]
