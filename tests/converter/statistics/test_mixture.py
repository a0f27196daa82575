"""Windows of several texts: as many of each, in turn, and the same again from the same seed."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from lowrank_export.converter.core.errors import InputError
from lowrank_export.converter.model.loading import load_tokenizer
from lowrank_export.converter.statistics.calibration import Calibration, Tokens, calibrate
from lowrank_export.converter.statistics.mixture import draw, in_turn, samples, shares, text_sha256, texts_in

SIZES = {"windows": 7, "length": 16, "held_out": 2, "seed": 3}


@pytest.fixture
def tokenizer(tiny: ModuleType, tmp_path: Path) -> PreTrainedTokenizerBase:
    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "a.txt").write_text(tiny.TEXT, encoding="utf-8")
    (tmp_path / "b.txt").write_text(tiny.TEXT.upper(), encoding="utf-8")
    return load_tokenizer(tmp_path)


def written(count: int, length: int, seed: int) -> Tokens:
    """Windows that nothing else gives."""
    return np.full((count, length), seed, dtype=np.int32)


def drawn(spec: str, tokenizer: PreTrainedTokenizerBase) -> Calibration:
    return draw(spec, tokenizer, written, **SIZES)


@given(count=st.integers(0, 50), texts=st.integers(1, 9))
def test_shares_are_even_and_make_up_the_whole(count: int, texts: int) -> None:
    found = shares(count, texts)
    assert sum(found) == count and max(found) - min(found) <= 1 and found == sorted(found, reverse=True)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_every_window_comes_once_and_texts_take_turns(counts: list[int]) -> None:
    parts = [
        np.full((n, 2), number, dtype=np.int32) + np.arange(n, dtype=np.int32)[:, None] * 100
        for number, n in enumerate(counts)
    ]
    found = in_turn(parts)
    assert sorted(map(tuple, found)) == sorted(tuple(row) for part in parts for row in part)
    assert list(found[:, 0] // 100) == sorted(found[:, 0] // 100)  # no second window of one before the first of all


def test_one_text_is_drawn_as_ever(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    text = str(tmp_path / "a.txt")
    one = drawn(text, tokenizer)
    assert one.sha256 == calibrate(text, tokenizer, **SIZES).sha256 and one.sampled is None


def test_two_texts_and_the_model(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    spec = f"{tmp_path / 'a.txt'} + self + {tmp_path / 'b.txt'}"
    mixed = drawn(spec, tokenizer)
    assert mixed.windows.shape == (7, 16) and mixed.held_out.shape == (2, 16) and mixed.text == spec
    assert mixed.sampled is not None and len(mixed.sampled) == 3
    whole = np.concatenate([mixed.windows, mixed.held_out])
    np.testing.assert_array_equal(whole[1::3], mixed.sampled)
    for place, name in ((0, "a.txt"), (2, "b.txt")):
        alone = calibrate(str(tmp_path / name), tokenizer, windows=3, length=16, held_out=0, seed=3)
        np.testing.assert_array_equal(whole[place::3], alone.windows)
    assert drawn(spec, tokenizer).sha256 == mixed.sha256
    assert mixed.drawn_from is not None and mixed.drawn_from.documents == 2


def test_what_a_spec_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert texts_in("python-docs + self") == ("python-docs", "self")
    assert samples("python-docs + self") and samples("self") and not samples("python-docs")
    assert texts_in("f.jsonl#prompt+answer") == ("f.jsonl#prompt+answer",)
    monkeypatch.chdir(tmp_path)
    Path("a + b").write_text("one file")
    assert texts_in("a + b") == ("a + b",)
    long = "a" * 300  # longer than a file system allows
    assert texts_in(f"{long} + self") == (long, "self")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("a.txt + ", "without a name"),
        ("a.txt + self + a.txt", "names a text twice"),
        ("a + w.npy", "w.npy is ready-made windows"),
    ],
)
def test_what_cannot_be_mixed(spec: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        texts_in(spec)


def test_the_hash_is_of_all_texts(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    a, b = (str(tmp_path / name) for name in ("a", "b"))
    hashes = {text_sha256(spec) for spec in (a, b, f"{a} + {b}", f"{b} + {a}", f"{a} + self", "self")}
    assert len(hashes) == 6 and text_sha256("self") is None
    before = text_sha256(f"{a} + {b}")
    (tmp_path / "b").write_text("changed")
    assert text_sha256(f"{a} + {b}") != before
