"""The windows of a checkpoint, drawn again; what is refused and with which words."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lowrank_export.converter.core.errors import InputError, UsageError
from lowrank_export.converter.model.loading import load_tokenizer
from lowrank_export.converter.statistics.calibration import Calibration, calibrate, hold_out
from lowrank_export.converter.statistics.mixture import draw
from lowrank_export.converter.statistics.recorded_windows import SAMPLED, recorded_windows


@pytest.fixture
def folder(tiny: ModuleType, tmp_path: Path) -> Path:
    """A folder with a tokenizer and a text; all that is read of a checkpoint here."""
    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text(tiny.TEXT, encoding="utf-8")
    return tmp_path


def drawn(folder: Path) -> Calibration:
    text = str(folder / "notes.txt")
    return calibrate(text, load_tokenizer(folder), windows=20, length=16, held_out=2, seed=3)


def record(folder: Path, **values: Any) -> None:
    (folder / "calibration.json").write_text(json.dumps({**drawn(folder).record(), **values}), encoding="utf-8")


def test_the_same_windows(folder: Path) -> None:
    record(folder)
    np.testing.assert_array_equal(recorded_windows(folder), drawn(folder).windows)


def test_the_same_windows_where_a_refinement_held_some_out(folder: Path) -> None:
    text = str(folder / "notes.txt")
    held = hold_out(calibrate(text, load_tokenizer(folder), windows=20, length=16, held_out=0, seed=3))
    (folder / "calibration.json").write_text(json.dumps(held.record()), encoding="utf-8")
    np.testing.assert_array_equal(recorded_windows(folder), held.windows)


def test_ready_made_windows(folder: Path) -> None:
    np.save(folder / "w.npy", np.arange(24, dtype=np.int32).reshape(2, 12))
    given = calibrate(str(folder / "w.npy"), load_tokenizer(folder), windows=1, length=8, held_out=0, seed=0)
    (folder / "calibration.json").write_text(json.dumps(given.record()), encoding="utf-8")
    np.testing.assert_array_equal(recorded_windows(folder), np.arange(24).reshape(2, 12))


def test_another_text_in_the_recorded_size(folder: Path, tiny: ModuleType) -> None:
    record(folder)
    (folder / "other.txt").write_text(tiny.TEXT.upper(), encoding="utf-8")
    found = recorded_windows(folder, str(folder / "other.txt"))
    assert found.shape == (20, 16) and not np.array_equal(found, drawn(folder).windows)


def test_nothing_recorded(folder: Path) -> None:
    with pytest.raises(UsageError, match="records no calibration text; give a text with --calibration"):
        recorded_windows(folder)


@pytest.mark.parametrize("spec", ["self", "{text} + self"])
def test_windows_that_the_dense_model_wrote_are_those_that_were_kept(folder: Path, spec: str) -> None:
    spec = spec.format(text=folder / "notes.txt")
    kept = np.arange(22 * 16, dtype=np.int32).reshape(22, 16) % 50
    whole = draw(
        spec, load_tokenizer(folder), lambda n, length, seed: kept[:n], windows=20, length=16, held_out=2, seed=3
    )
    (folder / "calibration.json").write_text(json.dumps(whole.record()), encoding="utf-8")
    with pytest.raises(UsageError, match=r"sampled from the dense model, and sampled_windows\.npy is not there"):
        recorded_windows(folder)
    assert whole.sampled is not None
    np.save(folder / SAMPLED, whole.sampled)
    np.testing.assert_array_equal(recorded_windows(folder), whole.windows)
    np.save(folder / SAMPLED, whole.sampled[:3])
    with pytest.raises(InputError, match="3 windows of 16 tokens, not"):
        recorded_windows(folder)


def test_windows_of_the_model_itself_are_for_dense_models(folder: Path) -> None:
    record(folder)
    with pytest.raises(UsageError, match="self: only the dense model samples windows; give a text"):
        recorded_windows(folder, "self")
    written = np.ones((20, 16), dtype=np.int32)
    np.testing.assert_array_equal(recorded_windows(folder, "self", sample=lambda n, length, seed: written[:n]), written)


def test_text_that_has_changed(folder: Path, tiny: ModuleType) -> None:
    record(folder)
    (folder / "notes.txt").write_text(tiny.TEXT.upper(), encoding="utf-8")
    with pytest.raises(InputError, match=r"notes\.txt is not the text it was calibrated on any more"):
        recorded_windows(folder)


def test_text_that_is_gone(folder: Path) -> None:
    record(folder)
    (folder / "notes.txt").unlink()
    with pytest.raises(InputError, match="no such text"):
        recorded_windows(folder)


@pytest.mark.parametrize("key", ["windows", "window_length", "seed", "held_out"])
def test_damaged_record(folder: Path, key: str) -> None:
    record(folder, **{key: "many"})
    with pytest.raises(InputError, match=f"{key} is 'many'"):
        recorded_windows(folder)
